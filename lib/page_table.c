/* lib/page_table.c -- one program's numbers: its facts, its hour, its topics and partitions. Refuses to show
 * more partitions than a person reads: the worst of them, and how many more there are. */
#include "lib/page_inner.h"

#include "lib/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_ROWS 100
#define MOST_ALL  10000 /* partitions that are looked at */

/* ---------------------------------------------------------------- facts */

static void put_fact(struct pr_buf *b, const char *name, const char *value)
{
	pr_buf_printf(b, "<div><dt>%s</dt><dd>", name);
	pr_html_text(b, value);
	pr_buf_puts(b, "</dd></div>");
}

static void put_count(struct pr_buf *b, const struct pr_part *p, const char *name, const char *member)
{
	char text[32];

	put_fact(b, name, page_count(page_num(p->status, member), text));
}

static void put_time(struct pr_buf *b, const struct pr_part *p, const char *name, const char *member)
{
	char text[32];

	put_fact(b, name, page_span(page_num(p->status, member), text));
}

static const char *arrow(const char *trend)
{
	return strcmp(trend, "growing") == 0   ? "\xe2\x86\x97 growing"
	       : strcmp(trend, "falling") == 0 ? "\xe2\x86\x98 falling"
	       : strcmp(trend, "steady") == 0  ? "\xe2\x86\x92 steady"
					       : "";
}

static void put_lag(struct pr_buf *b, const struct pr_part *p)
{
	char text[32];

	pr_buf_printf(b, "<div><dt>Lag</dt><dd>%s <small>%s</small></dd></div>",
		page_span(page_num(p->status, "lag_seconds"), text), arrow(page_str(p->status, "trend")));
}

static void relay_facts(struct pr_buf *b, const struct pr_part *p)
{
	put_lag(b, p);
	put_count(b, p, "Pending events", "pending_events");
	put_count(b, p, "In flight", "in_flight_events");
	put_count(b, p, "Published since the start", "published_total");
	put_count(b, p, "Parked events", "parked_events");
	put_count(b, p, "Parked keys", "parked_keys");
	put_count(b, p, "Empty ranges ahead", "partitions_ahead");
	put_fact(b, "Delivery",
		strcmp(page_str(p->status, "delivery"), "exactly_once") == 0 ? "exactly once"
									     : "at least once");
}

static void consumer_facts(struct pr_buf *b, const struct pr_part *p)
{
	const cJSON *handled = page_at(p->status, "handled");
	char text[32];

	put_lag(b, p);
	put_count(b, p, "Events behind", "lag_events");
	put_fact(b, "Handled since the start", page_count(page_num(handled, "handled"), text));
	put_fact(b, "Duplicates suppressed", page_count(page_num(handled, "duplicate"), text));
	put_count(b, p, "Parked events", "parked_events");
	put_count(b, p, "Parked keys", "parked_keys");
	put_count(b, p, "Dead letters", "dead_letters");
	put_count(b, p, "Replays running", "replays");
	put_count(b, p, "Partitions of this member", "assigned_partitions");
	put_fact(b, "Handler", page_str(p->status, "handler"));
}

/* ---------------------------------------------------------------- tables */

/* columns: "Topic|>Published", ">" of numbers. It scrolls by itself, and by keyboard. */
static void begin_table(struct pr_buf *b, const char *caption, const char *columns)
{
	pr_buf_printf(b,
		"<div class=\"scroll\" tabindex=\"0\" role=\"region\" "
		"aria-label=\"%s\"><table><caption>%s</caption><thead><tr>",
		caption, caption);
	while (*columns) {
		size_t n = strcspn(columns, "|");
		int number = *columns == '>';

		pr_buf_printf(b, "<th scope=\"col\"%s>%.*s</th>", number ? " class=\"num\"" : "",
			(int)n - number, columns + number);
		columns += n + (columns[n] == '|');
	}
	pr_buf_puts(b, "</tr></thead><tbody>");
}

static void end_table(struct pr_buf *b)
{
	pr_buf_puts(b, "</tbody></table></div>");
}

static void put_row_head(struct pr_buf *b, const char *text)
{
	pr_buf_puts(b, "<tr><th scope=\"row\">");
	pr_html_text(b, text);
	pr_buf_puts(b, "</th>");
}

static void put_cell(struct pr_buf *b, const char *class, const char *text)
{
	pr_buf_printf(b, "<td%s>", class);
	pr_html_text(b, text);
	pr_buf_puts(b, "</td>");
}

#define NUMBER " class=\"num\""

static void put_more(struct pr_buf *b, int left)
{
	if (left > 0)
		pr_buf_printf(
			b, "<p class=\"more\">%d more: <a href=\"/status.json\">status.json</a></p>", left);
}

static void relay_tables(struct pr_buf *b, const struct pr_part *p)
{
	const cJSON *waiting = page_at(p->status, "waiting"), *topics = page_at(p->status, "topics"), *t;
	char text[32];
	int n = 0;

	if (cJSON_GetArraySize(waiting) > 0) {
		begin_table(b, "Topics that cannot be written to", "Topic|>Events waiting|Reason");
		cJSON_ArrayForEach(t, waiting)
		{
			if (n++ == MOST_ROWS)
				break;
			put_row_head(b, page_str(t, "topic"));
			put_cell(b, NUMBER, page_count(page_num(t, "events"), text));
			put_cell(b, "", page_str(t, "reason"));
			pr_buf_puts(b, "</tr>");
		}
		end_table(b);
		put_more(b, cJSON_GetArraySize(waiting) - MOST_ROWS);
	}
	n = 0;
	if (cJSON_GetArraySize(topics) == 0)
		return;
	begin_table(b, "Topics", "Topic|>Published since the start");
	cJSON_ArrayForEach(t, topics)
	{
		if (n++ == MOST_ROWS)
			break;
		put_row_head(b, page_str(t, "topic"));
		put_cell(b, NUMBER, page_count(page_num(t, "published"), text));
		pr_buf_puts(b, "</tr>");
	}
	end_table(b);
	put_more(b, cJSON_GetArraySize(topics) - MOST_ROWS);
}

/* What is not known comes first: it may be worse than all that is. */
static int later_first(const void *a, const void *b)
{
	double x = page_num(*(const cJSON *const *)a, "lag_seconds"),
	       y = page_num(*(const cJSON *const *)b, "lag_seconds");

	if (isnan(x) || isnan(y))
		return isnan(y) - isnan(x);
	return x == y ? 0 : x > y ? -1 : 1;
}

static void put_partition(struct pr_buf *b, const cJSON *t)
{
	char text[32];

	put_row_head(b, page_str(t, "topic"));
	put_cell(b, NUMBER, page_count(page_num(t, "partition"), text));
	put_cell(b, NUMBER, page_span(page_num(t, "lag_seconds"), text));
	put_cell(b, "", arrow(page_str(t, "trend")));
	put_cell(b, NUMBER, page_count(page_num(t, "lag_events"), text));
	put_cell(b, NUMBER, page_count(page_num(t, "next_offset"), text));
	put_cell(b, NUMBER, page_count(page_num(t, "end_offset"), text));
	put_cell(b, NUMBER, page_count(page_num(t, "lanes"), text));
	pr_buf_puts(b, "</tr>");
}

static void put_partitions(struct pr_buf *b, const struct pr_part *p)
{
	const cJSON *list = page_at(p->status, "partitions"), *t;
	const cJSON **sorted;
	int n = 0, all = cJSON_GetArraySize(list);

	if (all == 0)
		return;
	sorted = pr_calloc((size_t)(all < MOST_ALL ? all : MOST_ALL), sizeof(*sorted));
	cJSON_ArrayForEach(t, list)
	{
		if (n < MOST_ALL)
			sorted[n++] = t;
	}
	if (n > MOST_ROWS)
		qsort(sorted, (size_t)n, sizeof(*sorted), later_first);
	begin_table(b, "Partitions of this member",
		"Topic|>Partition|>Lag|Trend|>Events behind|>Next offset|>End|>Lanes");
	for (int i = 0; i < n && i < MOST_ROWS; i++)
		put_partition(b, sorted[i]);
	end_table(b);
	put_more(b, all - MOST_ROWS);
	free(sorted);
}

/* ---------------------------------------------------------------- one program */

static void put_kind(struct pr_buf *b, const struct pr_part *p)
{
	pr_buf_puts(b, p->relay ? "Outbox " : "Group ");
	pr_html_text(b, page_name(p));
}

static void put_links(struct pr_buf *b, const struct pr_part *p)
{
	static const char *const paths[] = { "status.json", "history.json", "metrics", "readyz" };

	pr_buf_puts(b, "<p class=\"links\">");
	for (int i = 0; i < 4; i++) {
		pr_buf_puts(b, "<a href=\"");
		pr_html_text(b, p->where ? p->where : "");
		pr_buf_printf(b, "/%s\">%s</a> ", paths[i], paths[i]);
	}
	pr_buf_puts(b, "</p>");
}

void page_part(struct pr_buf *b, const struct pr_part *p, size_t i)
{
	pr_buf_printf(b, "<section class=\"part\" aria-labelledby=\"part-%zu\"><h2 id=\"part-%zu\">", i, i);
	page_icon(b, page_state(p));
	put_kind(b, p);
	pr_buf_printf(b, " <small class=\"word s-%s\">%s</small></h2>", page_state(p),
		p->status ? page_state(p) : "no answer");
	if (p->status) {
		pr_buf_puts(b, "<dl>");
		if (p->relay)
			relay_facts(b, p);
		else
			consumer_facts(b, p);
		put_time(b, p, "Running for", "uptime_seconds");
		put_fact(b, "Version", page_str(p->status, "version"));
		pr_buf_puts(b, "</dl>");
		page_sparks(b, p);
		if (p->relay)
			relay_tables(b, p);
		else
			put_partitions(b, p);
	}
	put_links(b, p);
	pr_buf_puts(b, "</section>");
}
