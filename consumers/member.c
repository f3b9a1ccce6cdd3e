/* consumers/member.c -- our membership of the Kafka group: the handle, which partitions the group gives and
 * takes, from where Kafka is to read them, and what follows when Kafka shuts us out. Refuses to wait inside a
 * rebalance: claims take as long as Postgres takes.
 *
 * Two ways to be given partitions. At once (range): each rebalance takes everything and gives everything, and
 * Kafka is told the whole list of what it reads. Bit by bit (cooperative-sticky, KIP-848): only what moves is
 * named; the slots of what stays keep their part, and nobody reads them anew. */
#include "consumers/group.h"
#include "consumers/topics.h"

#include "lib/clock.h"
#include "lib/kafka.h"
#include "lib/log.h"

#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define METADATA_MS    "10000"       /* new topics and partitions are found within */
#define LOST_LATELY_US (60 * PR_SEC) /* an answer to what we were before may still be on its way */
#define RELEASED_US    (2 * PR_SEC)  /* how often a name that is taken is asked for */
#define CLOSE_US       (5 * PR_SEC)
#define DESTROY_S      5

#define QUEUE_BACKOFF_SINCE 0x020200ff /* 2.2.0 */

/* Of KIP-848; headers before 2.4.0 do not have it. */
#define UNRELEASED_INSTANCE_ID 111

/* ---------------------------------------------------------------- what Kafka reads */

static int is_read(const struct slot *s)
{
	return (s->state == SLOT_READING || s->state == SLOT_DRAINING) && s->queue;
}

static void put(rd_kafka_topic_partition_list_t *list, struct slot *s)
{
	rd_kafka_topic_partition_list_add(list, s->topic, s->partition)->offset = s->position;
	s->anew = 0;
	s->hot = s->full = 1; /* full: its broker's thread is woken */
}

static int assign_all(struct group *g, struct pr_err *err)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)g->slots_n);
	int rc;

	for (size_t i = 0; i < g->slots_n; i++)
		if (g->slots[i].state == SLOT_READING && g->slots[i].queue)
			put(list, &g->slots[i]);
	rc = pr_kafka_assign(g->rk, list, err);
	rd_kafka_topic_partition_list_destroy(list);
	return rc;
}

/* What is read from elsewhere than before is taken away and given again. */
static int assign_changes(struct group *g, struct pr_err *err)
{
	rd_kafka_topic_partition_list_t *now, *less, *more;
	rd_kafka_resp_err_t code = rd_kafka_assignment(g->rk, &now);
	int rc = 0;

	if (code)
		return pr_kafka_fail(err, code, "cannot begin to read");
	less = rd_kafka_topic_partition_list_new((int)g->slots_n);
	more = rd_kafka_topic_partition_list_new((int)g->slots_n);
	for (size_t i = 0; i < g->slots_n; i++) {
		struct slot *s = &g->slots[i];
		int given = rd_kafka_topic_partition_list_find(now, s->topic, s->partition) != NULL;

		if (given && (s->anew || !is_read(s)))
			rd_kafka_topic_partition_list_add(less, s->topic, s->partition);
		if (is_read(s) && (s->anew || !given))
			put(more, s);
	}
	if (less->cnt > 0)
		rc = pr_kafka_assign_less(g->rk, less, err);
	if (rc == 0 && more->cnt > 0)
		rc = pr_kafka_assign_more(g->rk, more, err);
	rd_kafka_topic_partition_list_destroy(more);
	rd_kafka_topic_partition_list_destroy(less);
	rd_kafka_topic_partition_list_destroy(now);
	return rc;
}

void member_assign(struct group *g)
{
	struct pr_err err;
	int rc = g->bit_by_bit ? assign_changes(g, &err) : assign_all(g, &err);

	g->reassign = rc < 0 && rd_kafka_fatal_error(g->rk, NULL, 0) == 0;
	if (rc == 0)
		return;
	g->group_err = err;
	g->group_err_us = pr_mono_us();
}

/* ---------------------------------------------------------------- rebalances */

/* The rebalance is over, with nothing more to read than before. */
static void accept_none(struct group *g)
{
	rd_kafka_topic_partition_list_t *none = rd_kafka_topic_partition_list_new(0);

	if (g->bit_by_bit)
		(void)pr_kafka_assign_more(g->rk, none, NULL);
	else
		(void)pr_kafka_assign(g->rk, none, NULL);
	rd_kafka_topic_partition_list_destroy(none);
}

/* The last word to a handle is not waited for: one that ends throws away what it was asked. */
static int is_closing(const struct group *g)
{
	return !g->events;
}

/* Of the list, what Kafka reads for us: what is not claimed yet it was never told to read. */
static void give_back(struct group *g, const rd_kafka_topic_partition_list_t *list)
{
	rd_kafka_topic_partition_list_t *now = NULL, *less = rd_kafka_topic_partition_list_new(list->cnt);
	rd_kafka_error_t *error;

	(void)rd_kafka_assignment(g->rk, &now);
	for (int i = 0; now && i < list->cnt; i++)
		if (rd_kafka_topic_partition_list_find(now, list->elems[i].topic, list->elems[i].partition))
			rd_kafka_topic_partition_list_add(
				less, list->elems[i].topic, list->elems[i].partition);
	if (!is_closing(g))
		(void)pr_kafka_assign_less(g->rk, less, NULL);
	else if ((error = rd_kafka_incremental_unassign(g->rk, less)))
		rd_kafka_error_destroy(error);
	rd_kafka_topic_partition_list_destroy(less);
	if (now)
		rd_kafka_topic_partition_list_destroy(now);
}

static void given(struct group *g, const rd_kafka_topic_partition_list_t *list)
{
	if (g->c->topics) /* before we could be members of a later one */
		topics_join(g->c, g->rk);
	accept_none(g);
	atomic_store(&g->c->joined, 1);
	atomic_fetch_add(&g->c->rebalances, 1);
	memset(&g->group_err, 0, sizeof(g->group_err));
	if (!atomic_load(&g->c->stopping))
		slots_add(g, list);
	pr_log(PR_INFO, "partitions assigned", KI("partitions", list->cnt), KI("total", (int64_t)g->slots_n));
}

/* lost: we were thrown out before we knew; others may have them already. */
static void taken(struct group *g, const rd_kafka_topic_partition_list_t *list, int lost)
{
	if (lost)
		g->lost_us = pr_mono_us();
	if (g->bit_by_bit) {
		for (int i = 0; i < list->cnt; i++)
			slots_remove(g, list->elems[i].topic, list->elems[i].partition);
		give_back(g, list);
	} else if (is_closing(g)) {
		(void)rd_kafka_assign(g->rk, NULL);
	} else {
		(void)pr_kafka_assign(g->rk, NULL, NULL);
	}
	if (lost || !g->bit_by_bit)
		atomic_store(&g->c->joined, 0);
	pr_log(lost ? PR_WARN : PR_INFO, lost ? "partitions lost" : "partitions revoked",
		KI("partitions", list->cnt), KI("total", (int64_t)g->slots_n));
}

static void on_rebalance(
	rd_kafka_t *rk, rd_kafka_resp_err_t code, rd_kafka_topic_partition_list_t *list, void *opaque)
{
	struct group *g = opaque;
	int lost = rd_kafka_assignment_lost(rk); /* before anything is assigned: that resets it */

	if (rk != g->rk)
		return;
	if (!g->bit_by_bit)
		slots_drop(g);
	if (code == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS && !lost)
		given(g, list);
	else
		taken(g, list, lost);
}

/* ---------------------------------------------------------------- what the coordinator complains of */

/* Nothing can be done with this handle any more. */
static void begin_again(struct group *g, int64_t after_us)
{
	g->again = 1;
	g->again_us = pr_mono_us() + after_us;
	g->lost_us = INT64_MIN;
	atomic_store(&g->c->joined, 0);
}

/* Another process with our member name, mostly: there is no way back for this handle. But when our own
 * session has just ended and we have joined anew, Kafka may have taken a late word of ours from before for a
 * stranger's: then it is us whom it shut out, and we join once more. If it was a stranger after all, the next
 * time ends us. */
static void fatal(struct group *g)
{
	struct pr_err err;
	char why[300];
	rd_kafka_resp_err_t code = rd_kafka_fatal_error(g->rk, why, sizeof(why));

	if (!code || g->again || atomic_load(&g->c->stopping))
		return;
	(void)pr_fail(&err, PR_STOP, "kafka has shut this member out: %s", why);
	(void)snprintf(err.code, sizeof(err.code), "%s", rd_kafka_err2name(code));
	if ((int)code == UNRELEASED_INSTANCE_ID) {
		err.kind = PR_RETRY;
		(void)pr_hint(&err,
			"it is there until the session of who had the name before us ends; if that is"
			" a process that runs, set another member");
		g->group_err = err;
		g->group_err_us = pr_mono_us();
		health_trouble(g->c, TROUBLE_KAFKA, &err);
		begin_again(g, RELEASED_US);
		return;
	}
	if (code == RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID) {
		if (g->lost_us != INT64_MIN && pr_mono_us() - g->lost_us < LOST_LATELY_US) {
			pr_log_err(PR_WARN, "joins the group once more", &err);
			begin_again(g, 0);
			return;
		}
		(void)pr_hint(&err,
			"another process of the group has the same member name: set member, or another"
			" http.listen");
	}
	health_trouble(g->c, TROUBLE_REFUSED, &err);
	consumer_stop(g->c, PR_EX_REFUSED);
}

static void complain(struct group *g, const rd_kafka_message_t *rkm)
{
	(void)pr_fail(&g->group_err, pr_kafka_kind(rkm->err), "group \"%s\": %s", g->c->conf->group,
		rd_kafka_message_errstr(rkm));
	if (rkm->err == RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL)
		(void)pr_hint(&g->group_err,
			"its other members are assigned partitions in another way: kafka.assignment must be"
			" the same for all; \"range\" is what every librdkafka can");
	g->group_err_us = pr_mono_us();
	g->tick_us = 0;
}

/* Records came through the consumer queue: the partitions' own are opened anew. */
static void listen_anew(struct group *g)
{
	for (size_t i = 0; i < g->slots_n; i++) {
		struct slot *s = &g->slots[i];

		if (s->state != SLOT_READING || !s->queue)
			continue;
		slot_listen(g, s);
		s->anew = g->reassign = 1;
	}
}

void member_events(struct group *g)
{
	rd_kafka_message_t *rkm;
	int astray = 0;

	while ((rkm = rd_kafka_consumer_poll(g->rk, 0)) != NULL) {
		switch ((int)rkm->err) {
		case RD_KAFKA_RESP_ERR_NO_ERROR:
		case RD_KAFKA_RESP_ERR__PARTITION_EOF:
			astray = 1;
			break;
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART: /* the errand thread watches over them */
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
			break;
		case RD_KAFKA_RESP_ERR__FATAL:
			fatal(g);
			break;
		default:
			complain(g, rkm);
		}
		rd_kafka_message_destroy(rkm);
	}
	if (astray)
		listen_anew(g);
	if (rd_kafka_fatal_error(g->rk, NULL, 0))
		fatal(g);
}

/* ---------------------------------------------------------------- begin */

/* The same name after a restart gets its partitions back without a rebalance. Under KIP-848 a name that was
 * not given back is refused for a whole session, and a rebalance costs nothing: there only who asks for a
 * name has one. */
char *member_name(const struct pr_consumer_conf *conf, enum pr_assignment how)
{
	const char *port = conf->http.listen ? strrchr(conf->http.listen, ':') : NULL;
	char host[128] = "";

	if (conf->member)
		return pr_strdup(conf->member);
	if (how == PR_ASSIGN_CONSUMER || !port || strcmp(port, ":0") == 0 ||
		gethostname(host, sizeof(host) - 1) < 0)
		return NULL;
	return pr_asprintf("%s-%s", host, port + 1);
}

/* Heartbeats, sessions and the assignment are the broker's under KIP-848, and librdkafka refuses to be told.
 */
static size_t protocol_props(
	const struct pr_consumer_conf *conf, enum pr_assignment how, struct pr_kafka_prop *props)
{
	size_t n = 0;

	if (how == PR_ASSIGN_CONSUMER) {
		props[n++] = (struct pr_kafka_prop){ "group.protocol", "consumer" };
		return n;
	}
	props[n++] = (struct pr_kafka_prop){ "partition.assignment.strategy", pr_assignment_str(how) };
	if (!pr_kafka_has(
		    &conf->kafka.properties, "session.timeout.ms")) /* after that the others take over */
		props[n++] = (struct pr_kafka_prop){ "session.timeout.ms", "10000" };
	/* so soon a member learns of a rebalance it has to join */
	props[n++] = (struct pr_kafka_prop){ "heartbeat.interval.ms", "300" };
	return n;
}

static rd_kafka_t *new_member(struct group *g, struct pr_err *err)
{
	const struct pr_consumer_conf *conf = g->c->conf;
	enum pr_assignment how = pr_assignment_of(conf->kafka.assignment, rd_kafka_version());
	struct pr_kafka_prop props[24];
	char *member = member_name(conf, how), bytes[24], kbytes[24], messages[24];
	int64_t prefetch = pr_setting(&conf->limits.prefetch_bytes);
	rd_kafka_t *rk;
	size_t n = 0;

	g->bit_by_bit = how != PR_ASSIGN_RANGE;
	(void)snprintf(kbytes, sizeof(kbytes), "%" PRId64, prefetch >> 10);
	(void)snprintf(messages, sizeof(messages), "%d", QUEUE_MESSAGES);
	/* A record in memory takes several times what it takes on the wire, compressed ones still more. */
	(void)snprintf(bytes, sizeof(bytes), "%" PRId64, prefetch < (16 << 20) ? prefetch / 16 : 1 << 20);
#define PROP(k, v) (props[n++] = (struct pr_kafka_prop){ (k), (v) })
	PROP("group.id", conf->group);
	if (member)
		PROP("group.instance.id", member);
	PROP("enable.auto.commit", "false");
	PROP("enable.auto.offset.store", "false");
	PROP("auto.offset.reset", "error");
	PROP("isolation.level", "read_committed");
	PROP("enable.partition.eof", "true");
	n += protocol_props(conf, how, props + n);
	PROP("topic.metadata.refresh.interval.ms", METADATA_MS);
	PROP("queued.max.messages.kbytes", kbytes);
	PROP("queued.min.messages", messages);
	/* A partition that is read on has to wait for the end of the request under way. */
	PROP("fetch.wait.max.ms", "100");
	/* And one whose queue was full is looked at so often; before there was this, a nudge does it
	 * (read.c). */
	if (rd_kafka_version() >= QUEUE_BACKOFF_SINCE)
		PROP("fetch.queue.backoff.ms", "20");
	PROP("fetch.message.max.bytes", bytes);
	PROP("fetch.max.bytes", "8388608"); /* one larger record comes all the same */
	PROP(NULL, NULL);
#undef PROP
	rk = pr_kafka_new_member(conf->kafka.brokers, &conf->kafka.properties, props, on_rebalance, g, err);
	if (rk)
		pr_log(PR_INFO, "joins the group", KS("assignment", pr_assignment_str(how)),
			KS("member", member ? member : ""));
	free(member);
	return rk;
}

static int subscribe(struct group *g, struct pr_err *err)
{
	struct pr_strs topics = topics_read(g->c);
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)topics.n);
	rd_kafka_resp_err_t code;

	for (size_t i = 0; i < topics.n; i++)
		rd_kafka_topic_partition_list_add(list, topics.v[i], RD_KAFKA_PARTITION_UA);
	code = rd_kafka_subscribe(g->rk, list);
	rd_kafka_topic_partition_list_destroy(list);
	if (!code)
		return 0;
	(void)pr_kafka_fail(err, code, "cannot subscribe to kafka.topics");
	err->kind = PR_STOP;
	err->exit = PR_EX_CONFIG;
	return -1;
}

int member_begin(struct group *g, struct pr_err *err)
{
	static const uint64_t one = 1;

	g->again = 0;
	g->commit_us = pr_mono_us() + COMMIT_US;
	g->rk = new_member(g, err);
	if (!g->rk)
		return -1;
	g->events = rd_kafka_queue_get_consumer(g->rk);
	rd_kafka_queue_io_event_enable(g->events, g->fd, &one, sizeof(one));
	errand_start(&g->errand, g->c, g->rk);
	errand_round(&g->errand, g->round);
	return subscribe(g, err);
}

/* ---------------------------------------------------------------- end */

/* Whatever happens on the way, it ends. A static member does not leave: its partitions wait for it as long as
 * its session lasts. */
void member_leave(struct group *g)
{
	int64_t deadline = pr_mono_us() + CLOSE_US;
	rd_kafka_queue_t *answers = rd_kafka_queue_new(g->rk);
	rd_kafka_message_t *rkm;
	rd_kafka_error_t *error;

	rd_kafka_queue_io_event_enable(g->events, -1, NULL, 0);
	rd_kafka_queue_destroy(g->events);
	g->events = NULL;
	error = rd_kafka_consumer_close_queue(g->rk, answers);
	if (error) {
		rd_kafka_error_destroy(error);
		goto out;
	}
	while (!rd_kafka_consumer_closed(g->rk) && pr_mono_us() < deadline) {
		rkm = rd_kafka_consume_queue(answers, 50);
		if (rkm)
			rd_kafka_message_destroy(rkm);
	}
out:
	rd_kafka_queue_destroy(answers);
}

static void *destroy_thread(void *arg)
{
	rd_kafka_destroy_flags(arg, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
	return NULL;
}

int member_release(struct group *g)
{
	struct timespec deadline;
	pthread_t thread;

	if (errand_stop(&g->errand) < 0)
		return -1;
	if (g->events)
		rd_kafka_queue_destroy(g->events);
	g->events = NULL;
	if (!g->rk || pthread_create(&thread, NULL, destroy_thread, g->rk) != 0)
		return 0;
	g->rk = NULL;
	(void)clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += DESTROY_S;
	return pthread_timedjoin_np(thread, NULL, &deadline) == 0 ? 0 : -1;
}
