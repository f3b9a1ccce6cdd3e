/* consumers/sink/names.c -- what a record's time makes of it: its hour, the name of its file, and whether it
 * is late. Refuses to look at the clock: the same records have the same names, whenever they are written. */
#include "consumers/sink/sink.h"

#include "lib/clock.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define HOUR_US (3600 * PR_SEC)

int64_t sink_hour_of(int64_t time_us)
{
	return time_us < 0 ? 0 : time_us - time_us % HOUR_US;
}

int sink_is_late(const struct pr_sink_late_conf *late, int64_t time_us, int64_t watermark_us)
{
	return time_us >= 0 && watermark_us >= 0 &&
	       sink_hour_of(time_us) + HOUR_US + late->after_us <= watermark_us;
}

static const char *packed(const struct pr_sink_format_conf *conf)
{
	if (sink_format_of(conf)->packs || conf->compression == PR_SINK_PLAIN)
		return "";
	return conf->compression == PR_SINK_GZIP ? ".gz" : ".zst";
}

char *sink_file_path(const char *topic, int64_t hour_us, int late, int32_t partition, int64_t first,
	int64_t last, const struct pr_sink_format_conf *conf)
{
	char day[32];

	(void)pr_rfc3339(hour_us, day);
	return pr_asprintf("%s/%sdt=%.10s/hour=%.2s/%" PRId32 "-%" PRId64 "-%" PRId64 ".%s%s", topic,
		late ? "late/" : "", day, day + 11, partition, first, last, sink_format_of(conf)->ext,
		packed(conf));
}
