/* consumers/topics_tx.c -- a lane's producer, and its transactions: retry records, dead letters and the
 * offsets behind them become visible together or not at all. Refuses to commit for a part that is dead, and
 * to guess what became of a commit that nobody answered: then the partitions are claimed anew, and Kafka says
 * how far they are.
 *
 * The producer's name is the member's and the lane's, so that the first thing a restarted member does is to
 * end what it had left open; of a member without a name that ends by its time. */
#include "consumers/spring.h"
#include "consumers/topics.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/kafka.h"
#include "lib/log.h"

#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_MS   100         /* how often a wait looks whether a record was refused, or a stop is due */
#define MARKERS_US (4 * PR_MS) /* the broker writes a transaction's end after it has answered */
#define ABORT_US   (5 * PR_SEC)
#define BEHIND_US  (5 * PR_SEC) /* for the poll thread to learn of a new generation, or of a loss */
#define BEHIND_MS  10

/* Of KIP-848; headers before 2.4.0 do not have it. */
#define STALE_MEMBER_EPOCH 113

struct topics_tx {
	rd_kafka_t *rk;
	char *name;
	rd_kafka_resp_err_t refused; /* of a record of this transaction */
	char refused_by[250];        /* topic */
	int64_t committed_us;
	int behind; /* the last one was refused, for the group is in another generation */
};

/* ---------------------------------------------------------------- the producer */

static void note_refusal(struct topics_tx *t, rd_kafka_resp_err_t code, const char *topic)
{
	if (!code || t->refused)
		return;
	t->refused = code;
	(void)snprintf(t->refused_by, sizeof(t->refused_by), "%s", topic);
}

static void report(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque)
{
	(void)rk;
	note_refusal(opaque, m->err, rd_kafka_topic_name(m->rkt));
}

static void close_producer(struct topics_tx *t)
{
	if (!t->rk)
		return;
	(void)rd_kafka_purge(t->rk, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
	(void)rd_kafka_poll(t->rk, 0);
	rd_kafka_destroy(t->rk);
	t->rk = NULL;
}

/* Of a member without a name: one that nobody had before. */
static char *name_of(const struct lane *l)
{
	enum pr_assignment how = pr_assignment_of(l->c->conf->kafka.assignment, rd_kafka_version());
	char *member = member_name(l->c->conf, how), *name;

	name = pr_asprintf(
		"postrider.%s.%s.%d", l->c->conf->group, member ? member : l->c->topics->process, l->number);
	free(member);
	return name;
}

static rd_kafka_t *new_producer(struct lane *l, struct topics_tx *t, struct pr_err *err)
{
	const struct pr_consumer_conf *conf = l->c->conf;
	char timeout[24];
	const struct pr_kafka_prop ours[] = { { "transactional.id", t->name },
		{ "transaction.timeout.ms", timeout }, { "message.timeout.ms", timeout },
		{ "partitioner", "murmur2_random" }, { "linger.ms", "0" },
		{ "message.max.bytes", "104857600" },
		/* A broker that has not heard of a new topic refuses the first batch and may take the next
		 * (KAFKA-15591): never two under way. */
		{ "max.in.flight.requests.per.connection", "1" },
		{ "topic.metadata.propagation.max.ms", "2000" }, { NULL, NULL } };

	(void)snprintf(timeout, sizeof(timeout), "%" PRId64, (int64_t)(conf->kafka.timeout_us / PR_MS));
	return pr_kafka_new(
		RD_KAFKA_PRODUCER, conf->kafka.brokers, &conf->kafka.properties, ours, report, t, err);
}

/* Ends what a predecessor of this name left open, and shuts it out. */
static int init_transactions(struct lane *l, struct topics_tx *t, struct pr_err *err)
{
	int64_t give_up = pr_mono_us() + l->c->conf->kafka.timeout_us;
	rd_kafka_error_t *error;

	while ((error = rd_kafka_init_transactions(t->rk, 500))) {
		if (!rd_kafka_error_is_retriable(error) || pr_mono_us() > give_up ||
			atomic_load(&l->c->stopping))
			return pr_kafka_take(error, err, "cannot begin transactions in Kafka");
		rd_kafka_error_destroy(error);
	}
	return 0;
}

int topics_tx_open(struct lane *l, struct pr_err *err)
{
	struct topics_tx *t = l->topics_tx;

	if (!t) {
		t = l->topics_tx = pr_calloc(1, sizeof(*t));
		t->name = name_of(l);
	}
	if (t->rk)
		return 0;
	t->rk = new_producer(l, t, err);
	if (!t->rk)
		return -1;
	if (init_transactions(l, t, err) == 0)
		return 0;
	close_producer(t);
	if (err->kind == PR_STOP && !err->exit)
		(void)pr_hint(err,
			"the consumer's user needs the right to write with the transactional id "
			"\"%s\"",
			t->name);
	return -1;
}

int topics_tx_usable(const struct lane *l)
{
	return l->topics_tx && l->topics_tx->rk;
}

void topics_tx_close(struct lane *l)
{
	struct topics_tx *t = l->topics_tx;

	if (!t)
		return;
	close_producer(t);
	free(t->name);
	free(t);
	l->topics_tx = NULL;
}

/* ---------------------------------------------------------------- failures */

/* The group has moved on without us, or another producer of our name has. */
static int is_stale(rd_kafka_resp_err_t code)
{
	switch ((int)code) {
	case RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION:
	case RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID:
	case RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID:
	case RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS:
	case STALE_MEMBER_EPOCH:
	case RD_KAFKA_RESP_ERR__FENCED:
	case RD_KAFKA_RESP_ERR_PRODUCER_FENCED:
	case RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH:
		return 1;
	default:
		return 0;
	}
}

/* Whether the partitions are still ours stands open. */
static int is_behind(rd_kafka_resp_err_t code)
{
	return code == RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION ||
	       code == RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS || (int)code == STALE_MEMBER_EPOCH;
}

/* Before the commit was asked for, nothing of it can have happened. Takes error. */
static enum tx_end failed(rd_kafka_error_t *error, const char *doing, struct pr_err *err)
{
	int stale = is_stale(rd_kafka_error_code(error));

	(void)!pr_kafka_take(error, err, doing);
	if (err->kind == PR_STOP && !stale && !err->exit)
		err->kind = PR_RETRY; /* a right that is missing arrives while we wait */
	return stale ? TX_STALE : TX_UNDONE;
}

static enum tx_end refused(const struct topics_tx *t, struct pr_err *err)
{
	char last[256];

	(void)pr_kafka_fail(err, t->refused, t->refused_by);
	(void)pr_wrap(err, "cannot publish to a retry or dead letter topic");
	err->kind = PR_RETRY;
	pr_kafka_last_words(last, sizeof(last));
	if (t->refused == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE)
		(void)pr_hint(err, "raise max.message.bytes of those topics: our headers come on top");
	else if (t->refused == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)
		(void)pr_hint(err, "the consumer's user needs the right to write to them");
	else if (t->refused == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART ||
		 t->refused == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC ||
		 t->refused == RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION)
		(void)pr_hint(err,
			"it was there when the consumer started; create it again, with as many partitions as"
			" the topic it belongs to, or start the consumer anew");
	else if (last[0])
		(void)pr_hint(err, "last word of the client: %s", last);
	return TX_UNDONE;
}

/* Nothing of the transaction stays. A producer that cannot even do this goes, and the next one does it. */
static void give_up_on(struct topics_tx *t)
{
	int64_t until = pr_mono_us() + ABORT_US;
	rd_kafka_error_t *error;
	int again;

	(void)rd_kafka_purge(t->rk, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
	while ((error = rd_kafka_abort_transaction(t->rk, 500))) {
		again = rd_kafka_error_is_retriable(error) && pr_mono_us() < until;
		rd_kafka_error_destroy(error);
		if (again)
			continue;
		close_producer(t);
		return;
	}
}

/* ---------------------------------------------------------------- what goes in */

/* As Spring does it: the partition keeps its number. */
static int produce_one(const struct lane *l, struct topics_tx *t, const struct work *w)
{
	const struct message *m = w->m;
	int stage = w->v.fate == FATE_PARK ? topics_next(l->c, m, message_why(w->m)) : 0, own;
	const struct family *f = topics_find(l->c->topics, m->topic, &own);
	const struct sink *to = stage > 0 ? &f->retry[stage - 1] : &f->dead;
	rd_kafka_headers_t *h = topics_headers(l, w, stage);
	rd_kafka_resp_err_t code;

	/* librdkafka copies: the message is tried again when the transaction fails. */
	code = rd_kafka_producev(t->rk, RD_KAFKA_V_TOPIC(to->topic),
		RD_KAFKA_V_PARTITION(m->partition % to->partitions),
		RD_KAFKA_V_KEY((void *)(uintptr_t)m->key, m->key_len),
		RD_KAFKA_V_VALUE((void *)(uintptr_t)m->payload, m->payload_len), RD_KAFKA_V_HEADERS(h),
		RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END);
	if (!code)
		return 0;
	rd_kafka_headers_destroy(h);
	note_refusal(t, code, to->topic);
	return -1;
}

static int produce(const struct lane *l, struct topics_tx *t, const struct work *w, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (w[i].v.fate != FATE_PARK && w[i].v.fate != FATE_BURY)
			continue;
		if (produce_one(l, t, &w[i]) < 0)
			return -1;
	}
	return 0;
}

/* All of it is on the brokers, as yet invisible. */
static enum tx_end flush(const struct lane *l, struct topics_tx *t, struct pr_err *err)
{
	int64_t give_up = pr_mono_us() + l->c->conf->kafka.timeout_us;

	while (rd_kafka_flush(t->rk, PIECE_MS) != RD_KAFKA_RESP_ERR_NO_ERROR) {
		if (t->refused)
			return refused(t, err);
		if (pr_mono_us() < give_up)
			continue;
		(void)pr_fail(err, PR_RETRY, "kafka did not take the records of a batch in time");
		return TX_UNDONE;
	}
	return t->refused ? refused(t, err) : TX_DONE;
}

static rd_kafka_topic_partition_list_t *offsets(const struct lane *l, const char *const *mark)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)l->steps_n);
	rd_kafka_topic_partition_t *at;

	for (size_t i = 0; i < l->steps_n; i++) {
		const struct step *s = &l->steps[i];

		at = rd_kafka_topic_partition_list_add(list, s->part->topic, s->part->partition);
		at->offset = s->next;
		if (!mark || !mark[i])
			continue;
		at->metadata_size = strlen(mark[i]);
		at->metadata = rd_kafka_mem_malloc(NULL, at->metadata_size + 1);
		memcpy(at->metadata, mark[i], at->metadata_size + 1);
	}
	return list;
}

static enum tx_end send_offsets(const struct lane *l, struct topics_tx *t, const struct membership *member,
	const char *const *mark, struct pr_err *err)
{
	int64_t give_up = pr_mono_us() + l->c->conf->kafka.timeout_us;
	rd_kafka_topic_partition_list_t *list = offsets(l, mark);
	enum tx_end end = TX_DONE;
	rd_kafka_error_t *error;

	while ((error = rd_kafka_send_offsets_to_transaction(t->rk, list, member->md, 500))) {
		if (!rd_kafka_error_is_retriable(error) || pr_mono_us() > give_up) {
			t->behind = is_behind(rd_kafka_error_code(error));
			end = failed(error, "cannot commit the group's offsets", err);
			break;
		}
		rd_kafka_error_destroy(error);
	}
	rd_kafka_topic_partition_list_destroy(list);
	return end;
}

/* From here on nobody but the broker knows what became of it, unless it says so. */
static enum tx_end end_transaction(const struct lane *l, struct topics_tx *t, struct pr_err *err)
{
	int64_t give_up = pr_mono_us() + l->c->conf->kafka.timeout_us;
	rd_kafka_error_t *error;
	enum tx_end end;
	int undone;

	while ((error = rd_kafka_commit_transaction(t->rk, PIECE_MS * 5))) {
		if (rd_kafka_error_is_retriable(error) && pr_mono_us() < give_up) {
			rd_kafka_error_destroy(error);
			continue;
		}
		undone = rd_kafka_error_txn_requires_abort(error);
		end = failed(error, "cannot commit a transaction", err);
		if (undone)
			return end;
		close_producer(t); /* its successor ends it, one way or the other */
		return TX_UNKNOWN;
	}
	t->committed_us = pr_mono_us();
	return TX_DONE;
}

/* A transaction that begins before the end of the last one is written is told to wait, and librdkafka 2.0
 * then waits 20 ms: a short pause is quicker. */
static void let_markers_settle(const struct topics_tx *t)
{
	int64_t left = t->committed_us + MARKERS_US - pr_mono_us();

	if (left > 0)
		(void)poll(NULL, 0, (int)(left / PR_MS) + 1);
}

/* The membership was taken before: whoever takes a part from us says so first, and joins anew then. */
static int all_ours(const struct lane *l)
{
	for (size_t i = 0; i < l->steps_n; i++)
		if (atomic_load(&l->steps[i].part->dead))
			return 0;
	return 1;
}

static enum tx_end in_transaction(struct lane *l, struct topics_tx *t, const struct membership *member,
	const struct work *w, size_t n, const char *const *mark, struct pr_err *err)
{
	rd_kafka_error_t *error;
	enum tx_end end;

	let_markers_settle(t);
	t->refused = RD_KAFKA_RESP_ERR_NO_ERROR;
	t->behind = 0;
	error = rd_kafka_begin_transaction(t->rk);
	if (error) {
		end = failed(error, "cannot begin a transaction", err);
		close_producer(t);
		return end;
	}
	end = produce(l, t, w, n) < 0 ? refused(t, err) : flush(l, t, err);
	if (SABOTAGE(topics_offsets_apart) && end == TX_DONE && n > 0)
		end = end_transaction(l, t, err) == TX_DONE && !rd_kafka_begin_transaction(t->rk)
			      ? TX_DONE
			      : TX_UNKNOWN;
	if (end == TX_DONE)
		end = send_offsets(l, t, member, mark, err);
	if (end == TX_DONE && n > 0) {
		/* If we die here, retry records and offsets are sent and nothing is committed: nobody ever
		 * sees them, and the next producer of our name says so. */
		FAULT(topics_sent_before_commit);
		HOLD(topics_sent);
	}
	if (end == TX_DONE)
		end = end_transaction(l, t, err);
	if (end != TX_DONE && t->rk)
		give_up_on(t);
	return end;
}

/* As a member of the generation that is now. */
static enum tx_end commit_once(
	struct lane *l, const struct work *w, size_t n, const char *const *mark, struct pr_err *err)
{
	struct membership *member = topics_member(l->c->topics);
	enum tx_end end;

	if (!member || !all_ours(l)) {
		topics_member_drop(member);
		l->topics_tx->behind = 0;
		(void)pr_fail(err, PR_RETRY, "the partitions are not ours any more");
		return TX_STALE;
	}
	if (n > 0)
		HOLD(topics_commit);
	end = in_transaction(l, l->topics_tx, member, w, n, mark, err);
	topics_member_drop(member);
	return end;
}

/* A generation that is over says nothing about partitions that nobody took: where they wander one by one the
 * others stay ours, and what was handled of them is not thrown away. */
enum tx_end topics_commit(
	struct lane *l, const struct work *w, size_t n, const char *const *mark, struct pr_err *err)
{
	int64_t give_up = pr_mono_us() + BEHIND_US;
	enum tx_end end;

	while ((end = commit_once(l, w, n, mark, err)) == TX_STALE && l->topics_tx->behind &&
		pr_mono_us() < give_up) {
		if (!l->topics_tx->rk)
			return TX_UNDONE;
		topics_ask_member(l->c);
		(void)poll(NULL, 0, BEHIND_MS);
	}
	return end;
}
