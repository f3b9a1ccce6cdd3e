/* bench/sink_ceiling_main.c -- the raw ceiling of a sink into NDJSON files: a bare librdkafka consumer that
 * writes the whole contract line of each event, and gives a partition's file its name (fdatasync, rename,
 * sync of the directory) every so many records. No database, no checksum, no check that a payload is JSON, no
 * hours, one thread. Refuses to go on after any error. Prints one JSON line on stdout. Called by
 * bench/run.py.
 *
 *   sink-ceiling --brokers B --topic T --messages N --directory D [--records 20000] */
#include "lib/clock.h"
#include "lib/err.h"
#include "lib/json.h"

#include <fcntl.h>
#include <getopt.h>
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define BATCH      2000
#define PARTITIONS 64
#define CHUNK      (64 << 10)

struct file {
	int fd;
	long records;
	int64_t first, last;
	struct pr_buf buf;
};

static struct file files[PARTITIONS];
static const char *directory = ".";
static int dir_fd;
static long names;

static void die(const char *what, const char *why)
{
	(void)fprintf(stderr, "sink-ceiling: %s: %s\n", what, why);
	exit(PR_EX_FAILED);
}

static void temp_of(int partition, char path[600])
{
	(void)snprintf(path, 600, "%s/.%d.tmp", directory, partition);
}

static void flush(struct file *f)
{
	if (f->buf.len > 0 && write(f->fd, f->buf.s, f->buf.len) != (ssize_t)f->buf.len)
		die("write", "short");
	f->buf.len = 0;
}

static void name(struct file *f, int partition)
{
	char temp[600], path[600];

	if (f->fd <= 0)
		return;
	flush(f);
	temp_of(partition, temp);
	(void)snprintf(path, sizeof(path), "%s/%d-%lld-%lld.ndjson", directory, partition,
		(long long)f->first, (long long)f->last);
	if (fdatasync(f->fd) < 0 || close(f->fd) < 0 || rename(temp, path) < 0 || fsync(dir_fd) < 0)
		die("a file", path);
	f->fd = 0;
	f->records = 0;
	names++;
}

static void put_time(struct pr_buf *b, int64_t ms)
{
	static int64_t known = -1;
	static char text[32];

	if (ms / 1000 != known)
		(void)pr_rfc3339(ms / 1000 * PR_SEC, text);
	known = ms / 1000;
	text[20] = (char)('0' + ms % 1000 / 100);
	text[21] = (char)('0' + ms % 100 / 10);
	text[22] = (char)('0' + ms % 10);
	pr_buf_puts(b, text);
}

static void put_line(struct pr_buf *b, const rd_kafka_message_t *m, const char *topic)
{
	const char *key, *id = "", *type = "";
	size_t id_len = 0, type_len = 0, len, n = 0;
	rd_kafka_headers_t *h = NULL;
	rd_kafka_timestamp_type_t kind;
	const void *value;

	if (rd_kafka_message_headers(m, &h) == RD_KAFKA_RESP_ERR_NO_ERROR)
		for (; !rd_kafka_header_get_all(h, n, &key, &value, &len); n++) {
			if (strcmp(key, "id") == 0)
				id = value, id_len = len;
			else if (strcmp(key, "type") == 0)
				type = value, type_len = len;
		}
	pr_buf_puts(b, "{\"id\":");
	pr_buf_json(b, id, id_len);
	pr_buf_puts(b, ",\"type\":");
	pr_buf_json(b, type, type_len);
	pr_buf_printf(b, ",\"topic\":\"%s\",\"partition\":%d,\"offset\":%lld,\"key\":", topic,
		(int)m->partition, (long long)m->offset);
	pr_buf_json(b, m->key, m->key_len);
	pr_buf_puts(b, ",\"time\":\"");
	put_time(b, rd_kafka_message_timestamp(m, &kind));
	pr_buf_puts(b, "\",\"headers\":{");
	for (size_t i = 0; i < n && !rd_kafka_header_get_all(h, i, &key, &value, &len); i++) {
		if (i > 0)
			pr_buf_put(b, ",", 1);
		pr_buf_json(b, key, strlen(key));
		pr_buf_put(b, ":", 1);
		pr_buf_json(b, value, len);
	}
	pr_buf_puts(b, "},\"payload\":");
	pr_buf_put(b, m->payload, m->len);
	pr_buf_puts(b, "}\n");
}

static void take(const rd_kafka_message_t *m, const char *topic, long records)
{
	struct file *f = &files[m->partition % PARTITIONS];
	char temp[600];

	if (f->fd <= 0) {
		temp_of(m->partition, temp);
		f->fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
		if (f->fd < 0)
			die("open", temp);
		f->first = m->offset;
	}
	put_line(&f->buf, m, topic);
	f->last = m->offset;
	if (f->buf.len >= CHUNK)
		flush(f);
	if (++f->records >= records)
		name(f, m->partition);
}

static void set(rd_kafka_conf_t *conf, const char *key, const char *value)
{
	char why[300];

	if (rd_kafka_conf_set(conf, key, value, why, sizeof(why)) != RD_KAFKA_CONF_OK)
		die(key, why);
}

static rd_kafka_t *reader(const char *brokers, const char *topic)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	char why[300], group[64];
	rd_kafka_t *rk;

	(void)snprintf(group, sizeof(group), "sink-ceiling-%d", (int)getpid());
	set(conf, "bootstrap.servers", brokers);
	set(conf, "group.id", group);
	set(conf, "auto.offset.reset", "earliest");
	set(conf, "enable.auto.commit", "false");
	rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof(why));
	if (!rk)
		die("librdkafka", why);
	(void)rd_kafka_poll_set_consumer(rk);
	rd_kafka_topic_partition_list_add(list, topic, RD_KAFKA_PARTITION_UA);
	if (rd_kafka_subscribe(rk, list) != RD_KAFKA_RESP_ERR_NO_ERROR)
		die("subscribe", topic);
	rd_kafka_topic_partition_list_destroy(list);
	return rk;
}

static double cpu_us(const struct rusage *use)
{
	return (double)(use->ru_utime.tv_sec + use->ru_stime.tv_sec) * 1e6 +
	       (double)(use->ru_utime.tv_usec + use->ru_stime.tv_usec);
}

static void run(rd_kafka_t *rk, const char *topic, long messages, long records)
{
	rd_kafka_queue_t *queue = rd_kafka_queue_get_consumer(rk);
	rd_kafka_message_t **m = pr_calloc(BATCH, sizeof(*m));
	int64_t first_us = 0, end_us;
	struct rusage use;
	long n = 0;
	ssize_t got;

	while (n < messages) {
		got = rd_kafka_consume_batch_queue(queue, 1000, m, BATCH);
		for (ssize_t i = 0; i < got; i++) {
			if (!m[i]->err) {
				first_us = first_us ? first_us : pr_mono_us();
				take(m[i], topic, records);
				n++;
			}
			rd_kafka_message_destroy(m[i]);
		}
	}
	for (int p = 0; p < PARTITIONS; p++)
		name(&files[p], p);
	end_us = pr_mono_us();
	(void)getrusage(RUSAGE_SELF, &use);
	(void)printf(
		"{\"n\": %ld, \"seconds\": %.3f, \"rate\": %.0f, \"files\": %ld, \"cpu_us_per_event\": %.3f, "
		"\"peak_rss_kb\": %ld}\n",
		n, (double)(end_us - first_us) / PR_SEC, (double)n * PR_SEC / (double)(end_us - first_us),
		names, cpu_us(&use) / (double)n, use.ru_maxrss);
	free(m);
	rd_kafka_queue_destroy(queue);
}

int main(int argc, char **argv)
{
	static const struct option longs[] = { { "brokers", 1, NULL, 'b' }, { "topic", 1, NULL, 't' },
		{ "messages", 1, NULL, 'n' }, { "directory", 1, NULL, 'd' }, { "records", 1, NULL, 'r' },
		{ 0 } };
	const char *brokers = NULL, *topic = NULL;
	long messages = 1000000, records = 20000;
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (c == 'b')
			brokers = optarg;
		else if (c == 't')
			topic = optarg;
		else if (c == 'n')
			messages = strtol(optarg, NULL, 10);
		else if (c == 'd')
			directory = optarg;
		else if (c == 'r')
			records = strtol(optarg, NULL, 10);
		else
			return PR_EX_USAGE;
	}
	dir_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (!brokers || !topic || dir_fd < 0 || records < 1)
		return PR_EX_USAGE;
	run(reader(brokers, topic), topic, messages, records);
	return 0;
}
