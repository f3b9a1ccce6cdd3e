/* consumers/sink/letters.c -- late records that are refused (late = "reject"): what their dead letters say is
 * kept with the open cut, and they are dead letters in the transaction that publishes it. Whoever finds the
 * cut recorded reads it again for them. Refuses to keep more than its bounds: the cut ends there. */
#include "consumers/sink/sink.h"
#include "consumers/tx.h"

#include "lib/clock.h"
#include "lib/log.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define LETTERS_MOST  1000      /* of a cut */
#define LETTERS_BYTES (8 << 20) /* of all lanes together, beside one a cut */
#define AT_ONCE       24        /* statements of one round trip */

struct sink_letter {
	struct sink_letter *after;
	int64_t offset;
	size_t bytes;
	struct args args; /* s points into them */
	struct pr_stmt s;
};

int sink_letters_have_room(const struct sink_part *sp, size_t bytes)
{
	const struct sink_lane *sl = sp->lane;

	if (!sp->open || !sp->open->letters)
		return 1;
	return sp->open->letters_n < LETTERS_MOST &&
	       sl->letters_bytes + bytes <= LETTERS_BYTES / (size_t)atomic_load(&sl->shared->c->lanes_used);
}

void sink_letter_add(struct sink_part *sp, struct message *m)
{
	struct sink_letter *x = pr_calloc(1, sizeof(*x));
	struct work w = { .m = m, .v = { .fate = FATE_BURY } };
	struct outcome why = { .cls = PR_FAIL_DECODE, .code = "late" };

	(void)snprintf(why.text, sizeof(why.text),
		"its hour was over when it came (handler.%s.late = \"reject\")", sp->lane->ops->name);
	m->attempts++;
	message_failed(m, &why);
	x->offset = m->offset;
	x->bytes = m->bytes;
	x->s = held_stmt(sp->lane->l, &w, &x->args);
	*(sp->open->letters ? &sp->open->last_letter->after : &sp->open->letters) = x;
	sp->open->last_letter = x;
	sp->open->letters_n++;
	sp->lane->letters_bytes += x->bytes;
}

/* Of one cut. */
static int bury(struct sink_lane *sl, struct sink_cut *c, struct pr_err *err)
{
	struct sink_letter *x = c->letters;

	while (x) {
		struct pr_stmt s[AT_ONCE];
		int n = 0, rc;

		for (; x && n < AT_ONCE; x = x->after)
			s[n++] = x->s;
		s[n - 1].sync = 1;
		rc = pr_pg_pipeline(sl->l->pg, s, n, NULL, err);
		pr_stmt_clear(s, n);
		if (rc < 0)
			return -1;
	}
	return 0;
}

int sink_letters_bury(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err)
{
	int rc = 0;

	for (size_t i = 0; i < n && rc == 0; i++)
		rc = bury(sl, cuts[i], err);
	return rc;
}

void sink_letters_told(struct sink_lane *sl, const struct sink_cut *c)
{
	if (!c->letters)
		return;
	atomic_fetch_add(&sl->l->c->handled[DEAD_LETTER], c->letters_n);
	if (!pr_log_due(&sl->l->told_us, PR_SEC))
		return;
	pr_log(PR_WARN, "late records are dead letters", KS("topic", c->part->part->topic),
		KI("partition", c->part->part->partition), KI("first", c->letters->offset),
		KI("last", c->last_letter->offset), KI("records", (int64_t)c->letters_n));
}

void sink_letters_free(struct sink_cut *c)
{
	struct sink_letter *x;

	while ((x = c->letters)) {
		c->letters = x->after;
		c->part->lane->letters_bytes -= x->bytes;
		args_free(&x->args);
		free(x);
	}
}

void sink_letters_put(struct pr_buf *b, const struct sink_cut *c)
{
	for (const struct sink_letter *x = c->letters; x; x = x->after)
		pr_buf_printf(b, "%c%" PRId64, x == c->letters ? '{' : ',', x->offset);
	pr_buf_puts(b, c->letters ? "}" : "");
}

int sink_letters_have(const char *text, int64_t offset)
{
	char *end;

	for (const char *p = text; *p && *p != '}'; p = end)
		if (strtoll(p + 1, &end, 10) == offset)
			return 1;
	return 0;
}
