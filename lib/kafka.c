/* lib/kafka.c -- the one place that knows librdkafka's properties and error codes.
 * Refuses properties that would break the guarantee or run somebody's code. */
#include "lib/kafka.h"

#include "lib/clock.h"
#include "lib/pulse.h"

#include <openssl/x509.h>
#include <openssl/x509_vfy.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define REFUSED_US PR_SEC /* one broker's refusal is not yet all of them */

struct denied {
	const char *name;
	const char *why;
};

/* Reliability notes: librdkafka twins of CVE-2023-25194 (code execution by client config), the
 * properties each of which alone reorders, duplicates or loses, and those that have a key of ours. */
static const struct denied denied[] = {
	{ "bootstrap.servers", "set kafka.brokers instead" },
	{ "metadata.broker.list", "set kafka.brokers instead" },
	{ "enable.idempotence", "the guarantee needs it on" },
	{ "acks", "the guarantee needs all" },
	{ "request.required.acks", "the guarantee needs all" },
	{ "transactional.id", "it is postrider.<name>: it fences a second relay" },
	{ "transaction.timeout.ms", "set kafka.timeout instead" },
	{ "isolation.level", "it is read_committed: aborted records must not be seen" },
	{ "partitioner", "it is murmur2_random, so that Java producers agree" },
	{ "message.timeout.ms", "a message that times out makes a hole no error stops" },
	{ "delivery.timeout.ms", "a message that times out makes a hole no error stops" },
	{ "retries", "a retry that gives up makes a hole" },
	{ "message.send.max.retries", "a retry that gives up makes a hole" },
	{ "max.in.flight", "idempotence fixes it at 5" },
	{ "max.in.flight.requests.per.connection", "idempotence fixes it at 5" },
	{ "enable.gapless.guarantee", "the relay replays by itself" },
	{ "queue.buffering.max.messages", "set limits.batch_events instead" },
	{ "queue.buffering.max.kbytes", "set limits.batch_bytes instead" },
	{ "enable.auto.commit", "the database is the truth about offsets" },
	{ "auto.commit.enable", "the database is the truth about offsets" },
	{ "enable.auto.offset.store", "the database is the truth about offsets" },
	{ "auto.offset.reset", "a reset would skip or repeat silently" },
	{ "group.id", "set group instead" },
	{ "plugin.library.paths", "it loads code" },
	{ "ssl.engine.location", "it loads code" },
	{ "ssl.providers", "it loads code" },
	{ "sasl.kerberos.kinit.cmd", "it runs a shell command" },
	{ "sasl.oauthbearer.token.endpoint.url", "it makes requests to any address" },
	{ "delivery.report.only.error", "the relay sets it" },
	{ "dr_cb", "not a setting" },
	{ "dr_msg_cb", "not a setting" },
	{ "opaque", "not a setting" },
	{ "default_topic_conf", "not a setting" },
	{ NULL, NULL },
};

/* What a consumer fixes besides, or names otherwise than the relay does. */
static const struct denied denied_to_consumers[] = {
	{ "group.instance.id", "set member instead" },
	{ "isolation.level", "it is read_committed: what was rolled back must not be handled" },
	{ "enable.partition.eof", "the consumer needs it to know where a partition ends" },
	{ "auto.commit.interval.ms", "the database is the truth about offsets" },
	{ "offset.store.method", "the database is the truth about offsets" },
	{ "offset.store.path", "the database is the truth about offsets" },
	{ "partition.assignment.strategy", "set kafka.assignment instead" },
	{ "group.protocol", "set kafka.assignment instead" },
	{ "heartbeat.interval.ms", "the consumer sets it" },
	{ "topic.metadata.refresh.interval.ms", "it is 10 s: topics made later are read by then" },
	{ "queued.max.messages.kbytes", "set limits.prefetch_bytes instead" },
	{ "queued.min.messages", "set limits.prefetch_bytes instead" },
	{ "fetch.wait.max.ms", "the consumer sets it" },
	{ "fetch.queue.backoff.ms", "the consumer sets it" },
	{ "fetch.max.bytes", "memory is bounded by limits.prefetch_bytes" },
	{ "fetch.message.max.bytes", "memory is bounded by limits.prefetch_bytes" },
	{ "max.partition.fetch.bytes", "memory is bounded by limits.prefetch_bytes" },
	{ "transactional.id", "the consumer sets it, where it needs one" },
	{ "transaction.timeout.ms", "set kafka.timeout instead" },
	{ "queue.buffering.max.messages", "dead letters are published a few at a time" },
	{ "queue.buffering.max.kbytes", "dead letters are published a few at a time" },
	{ "delivery.report.only.error", "the consumer sets it" },
	{ "rebalance_cb", "not a setting" },
	{ "consume_cb", "not a setting" },
	{ "offset_commit_cb", "not a setting" },
	{ NULL, NULL },
};

static const char *reason(const struct denied *d, const char *name)
{
	while (d->name && strcasecmp(d->name, name) != 0)
		d++;
	return d->why;
}

static const char *why_denied(const char *name, int consumer)
{
	const char *why = consumer ? reason(denied_to_consumers, name) : NULL;

	if (!why)
		why = reason(denied, name);
#ifndef PR_TEST
	/* A cluster inside the process would acknowledge events that nobody can ever read. */
	if (!why && strncasecmp(name, "test.", 5) == 0)
		return "it is for librdkafka's own tests";
#endif
	return why;
}

/* "a.b=c" -> name in buf, *ret_value behind the sign. -1 when there is no "=" or the name is odd. */
static int split_property(const char *property, char *buf, size_t size, const char **ret_value)
{
	const char *eq = strchr(property, '=');
	size_t n = eq ? (size_t)(eq - property) : 0;

	while (n > 0 && property[n - 1] == ' ')
		n--;
	if (n == 0 || n >= size)
		return -1;
	memcpy(buf, property, n);
	buf[n] = '\0';
	eq++;
	while (*eq == ' ')
		eq++;
	*ret_value = eq;
	return 0;
}

static int set_property(rd_kafka_conf_t *conf, const char *name, const char *value, struct pr_err *err)
{
	char why[400];

	if (rd_kafka_conf_set(conf, name, value, why, sizeof(why)) == RD_KAFKA_CONF_OK)
		return 0;
	(void)pr_fail(err, PR_STOP, "librdkafka refuses \"%s\": %s", name, why);
	if (err)
		err->exit = PR_EX_CONFIG;
	return -1;
}

static int set_user_property(rd_kafka_conf_t *conf, const char *property, int consumer, struct pr_err *err)
{
	const char *value, *why;
	char name[128];

	if (split_property(property, name, sizeof(name), &value) < 0) {
		(void)pr_fail(err, PR_STOP, "\"%s\" is not of the form property=value", property);
		goto refused;
	}
	why = why_denied(name, consumer);
	if (!why)
		return set_property(conf, name, value, err);
	(void)pr_fail(err, PR_STOP, "the property \"%s\" may not be set: %s", name, why);
refused:
	if (err)
		err->exit = PR_EX_CONFIG;
	return -1;
}

static int check_properties(const struct pr_strs *properties, int consumer, struct pr_err *err)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < properties->n; i++)
		rc = set_user_property(conf, properties->v[i], consumer, err);
	rd_kafka_conf_destroy(conf);
	return rc;
}

int pr_kafka_check_properties(const struct pr_strs *properties, struct pr_err *err)
{
	return check_properties(properties, 0, err);
}

int pr_kafka_check_consumer_properties(const struct pr_strs *properties, struct pr_err *err)
{
	return check_properties(properties, 1, err);
}

/* librdkafka's own lines would break the logfmt stream and come without end while a broker is away;
 * what failed reaches us by error codes, and its last words by pr_kafka_last_words. */
static void drop_line(const rd_kafka_t *rk, int level, const char *fac, const char *buf)
{
	(void)rk;
	(void)level;
	(void)fac;
	(void)buf;
}

static pthread_mutex_t words_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct {
	char text[256];
	int code, x509;      /* x509: why OpenSSL refused the broker's certificate */
	int64_t said_us, us; /* of the text; of any word */
} words = { .said_us = INT64_MIN, .us = INT64_MIN };

/* Without how long it took and how often it came, which would make the same words new ones each time. That
 * no broker is up follows from what was said of them. */
static void remember_words(rd_kafka_t *rk, int code, const char *reason, void *opaque)
{
	const char *end = strstr(reason, " (after ");

	(void)rk;
	(void)opaque;
	(void)pthread_mutex_lock(&words_mutex);
	if (code != RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN || !words.text[0]) {
		(void)snprintf(words.text, sizeof(words.text), "%.*s",
			(int)(end ? (size_t)(end - reason) : strlen(reason)), reason);
		words.code = code;
		words.said_us = pr_mono_us();
	}
	words.us = pr_mono_us();
	(void)pthread_mutex_unlock(&words_mutex);
}

/* Decides nothing: what OpenSSL refused stays refused, and its reason is kept, which librdkafka drops. */
static int look_at_certificate(rd_kafka_t *rk, const char *broker, int32_t broker_id, int *x509_error,
	int depth, const char *der, size_t size, char *errstr, size_t errstr_size, void *opaque)
{
	(void)rk;
	(void)broker;
	(void)broker_id;
	(void)depth;
	(void)der;
	(void)size;
	(void)opaque;
	if (*x509_error == X509_V_OK)
		return 1;
	(void)snprintf(errstr, errstr_size, "%s", X509_verify_cert_error_string(*x509_error));
	(void)pthread_mutex_lock(&words_mutex);
	words.x509 = *x509_error;
	(void)pthread_mutex_unlock(&words_mutex);
	return 0;
}

void pr_kafka_last_words(char *buf, size_t size)
{
	(void)pthread_mutex_lock(&words_mutex);
	(void)snprintf(buf, size, "%s", words.text);
	(void)pthread_mutex_unlock(&words_mutex);
}

int64_t pr_kafka_last_words_us(void)
{
	int64_t us;

	(void)pthread_mutex_lock(&words_mutex);
	us = words.us;
	(void)pthread_mutex_unlock(&words_mutex);
	return us;
}

/* "sasl_ssl://db:9093/bootstrap: what" -> "db:9093", and *ret_what. */
static void split_words(const char *text, char *broker, size_t size, const char **ret_what)
{
	const char *what = strstr(text, ": "), *from = strstr(text, "://");
	size_t n;

	*ret_what = what ? what + 2 : text;
	from = from && what && from < what ? from + 3 : text;
	n = what ? (size_t)(what - from) : 0;
	(void)snprintf(broker, size, "%.*s", (int)(memchr(from, '/', n) ? strcspn(from, "/") : n), from);
}

static const char *certificate_hint(int x509)
{
	switch (x509) {
	case X509_V_ERR_CERT_HAS_EXPIRED:
		return "renew the broker's certificate; nothing is lost meanwhile";
	case X509_V_ERR_CERT_NOT_YET_VALID:
		return "compare the clocks of this host and the broker";
	case X509_V_ERR_HOSTNAME_MISMATCH:
	case X509_V_ERR_IP_ADDRESS_MISMATCH:
		return "kafka.brokers and the brokers' advertised.listeners must use a name that is in the "
		       "certificate";
	default:
		return "ssl.ca.location in kafka.properties must be the certificate of the authority that "
		       "signed the broker's";
	}
}

/* librdkafka before 2.6.1 sends a nonce that brokers since Kafka 4.0 refuse (confluentinc/librdkafka#4895).
 */
static int login_refused(const char *broker, const char *what, struct pr_err *err)
{
	const char *name = strstr(what, "error: ");

	(void)pr_fail(err, PR_RETRY, "kafka at %s refuses the login: %s", broker,
		name ? name + strlen("error: ") : what);
	if (err)
		err->exit = PR_EX_NOPERM;
	if (strstr(what, "SCRAM") && rd_kafka_version() < 0x020601ff)
		return pr_hint(err,
			"check sasl.username and sasl.password in kafka.properties; if they are right: "
			"librdkafka %s cannot log in by SCRAM at Kafka 4, take sasl.mechanisms=PLAIN over "
			"TLS, a client certificate, or librdkafka 2.6.1",
			rd_kafka_version_str());
	return pr_hint(err, "check sasl.mechanisms, sasl.username and sasl.password in kafka.properties");
}

int pr_kafka_refusal(int64_t since_us, struct pr_err *err)
{
	char text[sizeof(words.text)], broker[128];
	const char *what;
	int code, x509;

	(void)pthread_mutex_lock(&words_mutex);
	memcpy(text, words.text, sizeof(text));
	code = words.said_us < since_us ? 0 : words.code;
	x509 = words.x509;
	(void)pthread_mutex_unlock(&words_mutex);
	split_words(text, broker, sizeof(broker), &what);
	if (code == RD_KAFKA_RESP_ERR__AUTHENTICATION ||
		code == RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED) {
		(void)login_refused(broker, what, err);
	} else if (code && strstr(what, "certificate verify failed")) {
		(void)pr_fail(err, PR_RETRY, "the TLS certificate of kafka at %s is refused: %s", broker,
			X509_verify_cert_error_string(x509));
		(void)pr_hint(err, "%s", certificate_hint(x509));
	} else if (code && strstr(what, "SSL alert")) {
		(void)pr_fail(err, PR_RETRY, "kafka at %s refuses our TLS certificate: %s", broker, what);
		(void)pr_hint(err,
			"set ssl.certificate.location and ssl.key.location in kafka.properties to a pair "
			"that the brokers trust");
	} else {
		return 0;
	}
	if (err)
		(void)snprintf(err->code, sizeof(err->code), "%s", rd_kafka_err2name(code));
	return -1;
}

int pr_kafka_silent(int64_t since_us, const char *doing, rd_kafka_resp_err_t code, struct pr_err *err)
{
	char last[sizeof(words.text)];

	if (pr_kafka_refusal(since_us, err) < 0)
		return -1;
	(void)pr_fail(err, PR_RETRY, "%s: %s", doing, rd_kafka_err2str(code));
	if (err)
		(void)snprintf(err->code, sizeof(err->code), "%s", rd_kafka_err2name(code));
	pr_kafka_last_words(last, sizeof(last));
	return last[0] ? pr_hint(err, "last word of the client: %s", last) : -1;
}

/* Takes conf. */
static rd_kafka_t *new_handle(rd_kafka_type_t type, rd_kafka_conf_t *conf, const char *brokers,
	const struct pr_strs *properties, const struct pr_kafka_prop *ours, struct pr_err *err)
{
	rd_kafka_t *rk = NULL;
	char why[400];

	rd_kafka_conf_set_log_cb(conf, drop_line);
	rd_kafka_conf_set_error_cb(conf, remember_words);
	(void)rd_kafka_conf_set_ssl_cert_verify_cb(conf, look_at_certificate);
	if (set_property(conf, "bootstrap.servers", brokers, err) < 0)
		goto out;
	for (size_t i = 0; properties && i < properties->n; i++)
		if (set_user_property(conf, properties->v[i], 0, err) < 0)
			goto out;
	for (; ours && ours->name; ours++)
		if (set_property(conf, ours->name, ours->value, err) < 0)
			goto out;
	rk = rd_kafka_new(type, conf, why, sizeof(why));
	if (!rk) {
		(void)pr_fail(err, PR_STOP, "librdkafka: %s", why);
		if (err)
			err->exit = PR_EX_CONFIG;
	} else {
		conf = NULL; /* taken */
	}
out:
	if (conf)
		rd_kafka_conf_destroy(conf);
	return rk;
}

rd_kafka_t *pr_kafka_new(rd_kafka_type_t type, const char *brokers, const struct pr_strs *properties,
	const struct pr_kafka_prop *ours,
	void (*dr_cb)(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque), void *opaque,
	struct pr_err *err)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();

	rd_kafka_conf_set_opaque(conf, opaque);
	if (dr_cb)
		rd_kafka_conf_set_dr_msg_cb(conf, dr_cb);
	return new_handle(type, conf, brokers, properties, ours, err);
}

rd_kafka_t *pr_kafka_new_member(const char *brokers, const struct pr_strs *properties,
	const struct pr_kafka_prop *ours,
	void (*rebalance_cb)(rd_kafka_t *rk, rd_kafka_resp_err_t code, rd_kafka_topic_partition_list_t *list,
		void *opaque),
	void *opaque, struct pr_err *err)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *rk;

	rd_kafka_conf_set_opaque(conf, opaque);
	rd_kafka_conf_set_rebalance_cb(conf, rebalance_cb);
	rk = new_handle(RD_KAFKA_CONSUMER, conf, brokers, properties, ours, err);
	if (rk)
		(void)rd_kafka_poll_set_consumer(rk);
	return rk;
}

enum pr_kind pr_kafka_kind(rd_kafka_resp_err_t code)
{
	switch ((int)code) {
	case RD_KAFKA_RESP_ERR__FENCED:
	case RD_KAFKA_RESP_ERR_PRODUCER_FENCED:
	case RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH:
	case RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
	case RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED:
	case RD_KAFKA_RESP_ERR_INVALID_TRANSACTION_TIMEOUT:
	case RD_KAFKA_RESP_ERR__INVALID_ARG:
	case RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE:
		return PR_STOP;
	case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
	case RD_KAFKA_RESP_ERR_INVALID_MSG:
	case RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE:
	case RD_KAFKA_RESP_ERR_INVALID_RECORD:
	case RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP:
	case RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE:
	case RD_KAFKA_RESP_ERR_POLICY_VIOLATION:
	case RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION:
	case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
	case RD_KAFKA_RESP_ERR_UNSUPPORTED_FOR_MESSAGE_FORMAT:
	case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
	case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
		return PR_REJECT;
	default:
		return PR_RETRY;
	}
}

int pr_kafka_fail(struct pr_err *err, rd_kafka_resp_err_t code, const char *doing)
{
	(void)pr_fail(err, pr_kafka_kind(code), "%s: %s", doing, rd_kafka_err2str(code));
	if (err)
		(void)snprintf(err->code, sizeof(err->code), "%s", rd_kafka_err2name(code));
	return -1;
}

int pr_kafka_take(rd_kafka_error_t *error, struct pr_err *err, const char *doing)
{
	rd_kafka_resp_err_t code;

	if (!error)
		return 0;
	code = rd_kafka_error_code(error);
	(void)pr_fail(err, pr_kafka_kind(code), "%s: %s", doing, rd_kafka_error_string(error));
	if (err)
		(void)snprintf(err->code, sizeof(err->code), "%s", rd_kafka_err2name(code));
	rd_kafka_error_destroy(error);
	return -1;
}

/* ---------------------------------------------------------------- what a member reads */

/* A partition's end is an op of librdkafka's main thread, and its answer another one behind it. A question
 * goes through the same queue: when the first is answered the end is done, when the second is, its answer is.
 */
static void settle(rd_kafka_t *rk)
{
	for (int i = 0; i < 2; i++) {
		rd_kafka_topic_partition_list_t *list = NULL;

		(void)rd_kafka_assignment(rk, &list);
		if (list)
			rd_kafka_topic_partition_list_destroy(list);
	}
}

int pr_kafka_assign(rd_kafka_t *rk, const rd_kafka_topic_partition_list_t *list, struct pr_err *err)
{
	rd_kafka_resp_err_t code = rd_kafka_assign(rk, list);

	settle(rk);
	return code ? pr_kafka_fail(err, code, "cannot begin to read") : 0;
}

int pr_kafka_assign_more(rd_kafka_t *rk, const rd_kafka_topic_partition_list_t *list, struct pr_err *err)
{
	rd_kafka_error_t *error = rd_kafka_incremental_assign(rk, list);

	settle(rk);
	return pr_kafka_take(error, err, "cannot begin to read");
}

int pr_kafka_assign_less(rd_kafka_t *rk, const rd_kafka_topic_partition_list_t *list, struct pr_err *err)
{
	rd_kafka_error_t *error = rd_kafka_incremental_unassign(rk, list);

	settle(rk);
	return pr_kafka_take(error, err, "cannot stop reading");
}

static void read_configs(const rd_kafka_ConfigResource_t *resource, struct pr_topic_info *ret)
{
	const rd_kafka_ConfigEntry_t **entries;
	const char *name, *value;
	size_t n;

	if (rd_kafka_ConfigResource_error(resource))
		return;
	entries = rd_kafka_ConfigResource_configs(resource, &n);
	for (size_t i = 0; i < n; i++) {
		name = rd_kafka_ConfigEntry_name(entries[i]);
		value = rd_kafka_ConfigEntry_value(entries[i]);
		if (!value)
			continue;
		if (strcmp(name, "max.message.bytes") == 0)
			ret->max_message_bytes = strtoll(value, NULL, 10);
		else if (strcmp(name, "cleanup.policy") == 0)
			(void)snprintf(ret->cleanup_policy, sizeof(ret->cleanup_policy), "%s", value);
	}
}

/* Missing rights leave the fields at "unknown": the limit only makes trouble rarer. */
static void describe_topic(rd_kafka_t *rk, const char *topic, int timeout_ms, struct pr_topic_info *ret)
{
	rd_kafka_ConfigResource_t *want = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, topic);
	rd_kafka_AdminOptions_t *options = rd_kafka_AdminOptions_new(rk, RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS);
	rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
	const rd_kafka_ConfigResource_t **got;
	rd_kafka_event_t *event;
	char why[128];
	size_t n;

	(void)rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, why, sizeof(why));
	rd_kafka_DescribeConfigs(rk, &want, 1, options, queue);
	event = rd_kafka_queue_poll(queue, timeout_ms + 1000);
	if (event && !rd_kafka_event_error(event)) {
		got = rd_kafka_DescribeConfigs_result_resources(
			rd_kafka_event_DescribeConfigs_result(event), &n);
		if (n > 0)
			read_configs(got[0], ret);
	}
	if (event)
		rd_kafka_event_destroy(event);
	rd_kafka_queue_destroy(queue);
	rd_kafka_AdminOptions_destroy(options);
	rd_kafka_ConfigResource_destroy(want);
}

/* In growing pieces, so that a refusal is heard at once and a slow broker still has half of the time. */
static int ask_metadata(rd_kafka_t *rk, rd_kafka_topic_t *rkt, int timeout_ms,
	const struct rd_kafka_metadata **ret, struct pr_err *err)
{
	int64_t since = pr_mono_us(), until = since + (int64_t)timeout_ms * PR_MS, left;
	rd_kafka_resp_err_t code;
	char doing[320];
	int piece = 300;

	do {
		left = (until - pr_mono_us()) / PR_MS;
		if (left < 2 * piece)
			piece = left > 1 ? (int)left : 1;
		code = rd_kafka_metadata(rk, 0, rkt, ret, piece);
		if (!code)
			return 0;
		if (rd_kafka_type(rk) == RD_KAFKA_PRODUCER)
			(void)rd_kafka_poll(rk, 0);
		if (pr_mono_us() - since > REFUSED_US && pr_kafka_refusal(since, err) < 0)
			return -1;
		piece *= 2;
	} while ((code == RD_KAFKA_RESP_ERR__TIMED_OUT || code == RD_KAFKA_RESP_ERR__TRANSPORT) &&
		 pr_mono_us() < until);
	(void)snprintf(doing, sizeof(doing), "kafka did not describe topic \"%s\" within %d ms",
		rd_kafka_topic_name(rkt), timeout_ms);
	return pr_kafka_silent(since, doing, code, err);
}

int pr_kafka_topic_info(
	rd_kafka_t *rk, const char *topic, int timeout_ms, struct pr_topic_info *ret, struct pr_err *err)
{
	rd_kafka_topic_t *rkt = rd_kafka_topic_new(rk, topic, NULL);
	const struct rd_kafka_metadata *md = NULL;
	rd_kafka_resp_err_t code;
	int rc = -1;

	if (!rkt)
		return pr_kafka_fail(err, rd_kafka_last_error(), topic);
	pr_pulse_wait(2 * (timeout_ms + 1000) * PR_MS);
	if (ask_metadata(rk, rkt, timeout_ms, &md, err) < 0) {
		if (err && !err->hint[0])
			(void)pr_hint(err, "is kafka.brokers right, and a broker up?");
		goto out;
	}
	memset(ret, 0, sizeof(*ret));
	ret->max_message_bytes = -1;
	code = md->topic_cnt == 1 ? md->topics[0].err : RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
	if (code == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) {
		rc = 0;
		goto out;
	}
	if (code) {
		rc = pr_kafka_fail(err, code, topic);
		goto out;
	}
	ret->exists = md->topics[0].partition_cnt > 0;
	ret->partitions = md->topics[0].partition_cnt;
	if (ret->exists)
		describe_topic(rk, topic, timeout_ms, ret);
	rc = 0;
out:
	if (md)
		rd_kafka_metadata_destroy(md);
	rd_kafka_topic_destroy(rkt);
	return rc;
}

static int created(rd_kafka_event_t *event, const char *topic, int *ret_created, struct pr_err *err)
{
	const rd_kafka_topic_result_t **results;
	rd_kafka_resp_err_t code;
	size_t n;

	if (!event)
		return pr_fail(err, PR_RETRY, "kafka did not create topic \"%s\" in time", topic);
	code = rd_kafka_event_error(event);
	if (!code) {
		results = rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(event), &n);
		code = n > 0 ? rd_kafka_topic_result_error(results[0]) : RD_KAFKA_RESP_ERR_UNKNOWN;
	}
	if (code && code != RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS) {
		(void)pr_kafka_fail(err, code, topic);
		return pr_wrap(err, "cannot create topic");
	}
	*ret_created = !code;
	return 0;
}

int pr_kafka_create_topic(rd_kafka_t *rk, const char *topic, int partitions, int replication,
	const char *const *configs, int timeout_ms, int *ret_created, struct pr_err *err)
{
	rd_kafka_AdminOptions_t *options = rd_kafka_AdminOptions_new(rk, RD_KAFKA_ADMIN_OP_CREATETOPICS);
	rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
	rd_kafka_event_t *event = NULL;
	rd_kafka_NewTopic_t *nt;
	char name[128], why[200];
	const char *value;
	int rc = -1;

	nt = rd_kafka_NewTopic_new(topic, partitions, replication, why, sizeof(why));
	if (!nt) {
		(void)pr_fail(err, PR_REJECT, "cannot create topic \"%s\": %s", topic, why);
		goto out;
	}
	for (; configs && *configs; configs++)
		if (split_property(*configs, name, sizeof(name), &value) == 0)
			(void)rd_kafka_NewTopic_set_config(nt, name, value);
	(void)rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, why, sizeof(why));
	(void)rd_kafka_AdminOptions_set_operation_timeout(options, timeout_ms, why, sizeof(why));
	pr_pulse_wait((timeout_ms + 1000) * PR_MS);
	rd_kafka_CreateTopics(rk, &nt, 1, options, queue);
	event = rd_kafka_queue_poll(queue, timeout_ms + 1000);
	rc = created(event, topic, ret_created, err);
out:
	if (event)
		rd_kafka_event_destroy(event);
	if (nt)
		rd_kafka_NewTopic_destroy(nt);
	rd_kafka_queue_destroy(queue);
	rd_kafka_AdminOptions_destroy(options);
	return rc;
}

int pr_kafka_topic_valid(const char *name, size_t len)
{
	if (len == 0 || len > 249 || (len >= 2 && name[0] == '_' && name[1] == '_'))
		return 0;
	if ((len == 1 && name[0] == '.') || (len == 2 && name[0] == '.' && name[1] == '.'))
		return 0;
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)name[i];

		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
			    c == '.' || c == '_' || c == '-'))
			return 0;
	}
	return 1;
}

int pr_kafka_has(const struct pr_strs *properties, const char *name)
{
	size_t n = strlen(name);

	for (size_t i = 0; i < properties->n; i++)
		if (strncmp(properties->v[i], name, n) == 0 && strchr("= ", properties->v[i][n]))
			return 1;
	return 0;
}
