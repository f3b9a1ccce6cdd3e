/* cli/explain.c -- `postrider explain-error`: what a consumer would do about a failure, by the same function
 * that decides there. Contacts nothing. */
#include "cli/cli.h"
#include "lib/clock.h"
#include "lib/consumer_conf.h"
#include "lib/policy.h"

#include <ctype.h>
#include <string.h>

static const char *const meanings[] = {
	[PR_POLICY_RETRY] = "The message is tried again in place; its lane waits, the others go on. After "
			    "the last try it "
			    "becomes a dead letter.",
	[PR_POLICY_BREAKER] =
		"What is behind the handler counts as down: nothing is handled until one message, tried "
		"again and again, gets through. No message is given up.",
	[PR_POLICY_PARK] =
		"The key waits in inbox.parked with everything behind it, in order; the other keys go on.",
	[PR_POLICY_DEAD_LETTER] = "The message goes to inbox.dead_letter at once; those behind it go on.",
	[PR_POLICY_IGNORE] = "The message counts as handled.",
	[PR_POLICY_STOP] =
		"The consumer ends with exit status 1; the message is tried again when it is started.",
};

/* Of a group without a database. */
static const char *const topic_meanings[] = {
	[PR_POLICY_PARK] =
		"The message goes to the next retry topic and is tried again when its delay has passed; "
		"after "
		"the last one it becomes a dead letter. Those behind it, of its key too, do not wait: the "
		"order of the key is lost, which is the price of having no database.",
	[PR_POLICY_DEAD_LETTER] =
		"The message goes to the topic of dead letters at once; those behind it go on.",
	[PR_POLICY_STOP] = NULL,
};

/* A failure as somebody wrote it, and what decides about it. */
struct question {
	char text[64]; /* "class:code" */
	enum pr_fail_class cls;
	const char *code;
	const struct pr_rule *rule;
	int own; /* place of the rule in errors; -1: built in */
	const struct pr_consumer_conf *conf;
	int topics; /* the config names no database */
};

static int all(const char *s, int (*is)(int))
{
	for (; *s; s++)
		if (!is((unsigned char)*s))
			return 0;
	return 1;
}

/* People read "23505" and "503" in logs, without a class. */
static void complete(struct question *q, const char *word)
{
	const char *class = "", *code;

	if (strlen(word) == 5 && all(word, isalnum) && pr_fail_class_parse(word, &code) == PR_FAIL_NONE)
		class = "sqlstate:";
	else if (strlen(word) == 3 && all(word, isdigit))
		class = "http:";
	(void)snprintf(q->text, sizeof(q->text), "%s%s", class, word);
	if (strncmp(q->text, "sqlstate:", 9) == 0)
		for (char *p = q->text + 9; *p; p++)
			*p = (char)toupper((unsigned char)*p);
}

/* Whether the word before the colon is nearly a class: pr_match_problem says which. */
static int near_a_class(const char *text)
{
	const char *problem = pr_match_problem(text);

	return problem && strncmp(problem, "did you mean", 12) == 0;
}

/* What our own functions raise never comes to the rules. */
static int not_of_a_message(const char *text, struct pr_err *err)
{
	int fenced = strcmp(text, "sqlstate:PRF01") == 0;

	if (!fenced && strcmp(text, "sqlstate:PRD01") != 0)
		return 0;
	(void)cli_usage(err, "%s is no failure of a message: no rule is asked", text + strlen("sqlstate:"));
	return pr_hint(
		err, fenced ? "another member has taken the partition over, and handles what this one was at"
			    : "a message of the batch was handled before: the others are handled without it");
}

static int understand(struct question *q, const char *word, struct pr_err *err)
{
	const char *problem;

	if (strlen(word) >= sizeof(q->text) - 16)
		return cli_usage(err, "\"%.60s...\" is too long for a failure", word);
	complete(q, word);
	if (not_of_a_message(q->text, err) < 0)
		return -1;
	if (pr_fail_class_parse(q->text, &q->code) == PR_FAIL_NONE && !near_a_class(q->text)) {
		(void)cli_usage(err, "\"%s\": names no failure", word);
		return pr_hint(err,
			"a class and its code, as FAILURE of `postrider dlq list` and the log have "
			"them: sqlstate:23505, http:503, exit:1, reply:WORD, decode:id, timeout, crash");
	}
	problem = pr_match_problem(q->text);
	if (!problem && strncmp(q->text, "http:", 5) == 0 && all(q->text + 5, isdigit) &&
		(q->text[5] < '1' || q->text[5] > '5'))
		problem = "an HTTP status is 100 to 599";
	if (!problem && strpbrk(q->text, "*"))
		problem = "name one failure, not a pattern";
	q->cls = pr_fail_class_parse(q->text, &q->code);
	if (!problem && *q->code == '\0' && q->cls != PR_FAIL_TIMEOUT && q->cls != PR_FAIL_CRASH)
		problem = "its code is missing, as in sqlstate:23505 or http:503";
	if (!problem && q->cls == PR_FAIL_HTTP && strchr(q->code, 'x'))
		problem = "name one failure, not a pattern";
	return problem ? cli_usage(err, "\"%s\": %s", word, problem) : 0;
}

static void answer(struct question *q, const struct pr_consumer_conf *conf)
{
	const struct pr_rule *own = conf->errors.v;

	q->conf = conf;
	q->rule = q->topics ? pr_consumer_rule(conf, q->cls, q->code)
			    : pr_policy_of(own, conf->errors.n, q->cls, q->code);
	q->own = -1;
	for (size_t i = 0; i < conf->errors.n; i++)
		if (&own[i] == q->rule)
			q->own = (int)i;
}

static const char *meaning_of(const struct question *q)
{
	int policy = q->rule->policy;

	return q->topics && topic_meanings[policy] ? topic_meanings[policy] : meanings[policy];
}

static int counts(const struct pr_rule *r)
{
	return r->policy == PR_POLICY_RETRY || r->policy == PR_POLICY_PARK;
}

/* Retry topics, not the rule, say how often and when. */
static int by_topics(const struct question *q)
{
	return q->topics && q->rule->policy == PR_POLICY_PARK;
}

static int64_t attempts_of(const struct question *q)
{
	if (by_topics(q) && (q->rule->attempts > 0 || q->conf->retry.delays.n == 0))
		return (int64_t)q->conf->retry.delays.n + 1;
	return q->rule->attempts;
}

static int waits(const struct pr_rule *r)
{
	return counts(r) || r->policy == PR_POLICY_BREAKER;
}

/* All delays together, in the long run: with jitter they are three quarters of it. */
static double total_s(const struct pr_rule *r)
{
	double us = 0;
	int64_t step = r->backoff_us;

	for (int64_t i = 1; i < r->attempts; i++) {
		us += (double)step;
		step = step * 2 < r->backoff_max_us ? step * 2 : r->backoff_max_us;
	}
	return us * 0.75 / (double)PR_SEC;
}

static void print_json(const struct question *q, const char *file)
{
	cJSON *o = cJSON_CreateObject(), *rule = cJSON_CreateObject();
	const struct pr_rule *r = q->rule;

	(void)cJSON_AddStringToObject(o, "class", pr_fail_class_str(q->cls));
	(void)cJSON_AddStringToObject(o, "code", q->code);
	(void)cJSON_AddStringToObject(o, "policy", pr_policy_str((enum pr_policy)r->policy));
	(void)cJSON_AddStringToObject(rule, "match", r->match);
	(void)cJSON_AddItemToObject(
		rule, "file", q->own >= 0 ? cJSON_CreateString(file) : cJSON_CreateNull());
	(void)cJSON_AddItemToObject(
		rule, "index", q->own >= 0 ? cJSON_CreateNumber(q->own) : cJSON_CreateNull());
	(void)cJSON_AddItemToObject(o, "rule", rule);
	if (counts(r))
		cli_json_int(o, "attempts", attempts_of(q));
	else
		(void)cJSON_AddNullToObject(o, "attempts");
	(void)cJSON_AddItemToObject(o, "backoff_seconds",
		waits(r) && !by_topics(q) ? cJSON_CreateNumber((double)r->backoff_us / (double)PR_SEC)
					  : cJSON_CreateNull());
	(void)cJSON_AddItemToObject(o, "backoff_max_seconds",
		waits(r) && !by_topics(q) ? cJSON_CreateNumber((double)r->backoff_max_us / (double)PR_SEC)
					  : cJSON_CreateNull());
	(void)cJSON_AddStringToObject(o, "meaning", meaning_of(q));
	cli_json_free_line(o);
}

/* A time of a config, whole in its unit as it was written: "10 min", "24 h". */
static const char *exact(int64_t us, char *buf)
{
	int64_t s = us / PR_SEC;

	if (us % PR_SEC || s == 0)
		return cli_span((double)us / (double)PR_SEC, buf);
	(void)snprintf(buf, 48, "%lld %s",
		(long long)(s % 3600 == 0 ? s / 3600
			    : s % 60 == 0 ? s / 60
					  : s),
		s % 3600 == 0 ? "h"
		: s % 60 == 0 ? "min"
			      : "s");
	return buf;
}

static void print_delays(const struct pr_rule *r)
{
	char first[48], most[48], total[48];

	if (!waits(r))
		return;
	if (counts(r) && r->attempts > 0)
		(void)printf("%-9s %lld in all, about %s\n", "tries", (long long)r->attempts,
			cli_span(total_s(r), total));
	else
		(void)printf(
			"%-9s %s\n", "tries", counts(r) ? "for ever" : "one message, until it gets through");
	(void)printf("%-9s %s first, doubling up to %s\n", "delay", exact(r->backoff_us, first),
		exact(r->backoff_max_us, most));
}

static void print_topics(const struct question *q)
{
	const struct pr_strs *d = &q->conf->retry.delays;

	if (attempts_of(q) > 0)
		(void)printf("%-9s %lld in all\n", "tries", (long long)attempts_of(q));
	else
		(void)printf("%-9s for ever\n", "tries");
	for (size_t i = 0; i < d->n; i++)
		(void)printf(
			"%-9s %s, in TOPIC.retry.%s.%zu\n", i ? "" : "delay", d->v[i], q->conf->group, i + 1);
}

static void print_text(const struct question *q, const char *file)
{
	const struct pr_rule *r = q->rule;

	(void)printf("%s%s%s: %s\n", cli_on(stdout, CLI_BOLD), q->text, cli_off(stdout),
		pr_policy_str((enum pr_policy)r->policy));
	if (q->own >= 0)
		(void)printf("%-9s errors[%d] of %s: \"%s\"\n", "rule", q->own, file, r->match);
	else
		(void)printf("%-9s built in: \"%s\"\n", "rule", r->match);
	if (by_topics(q))
		print_topics(q);
	else
		print_delays(r);
	cli_fill(stdout, meaning_of(q), 0, 0);
}

int verb_explain_error(struct cli *c)
{
	struct question q = { .own = -1 };
	struct pr_err err = { 0 };

	if (understand(&q, c->args[0], &err) < 0)
		return cli_failed(c, &err);
	q.topics = c->consumer_loaded && !c->consumer.database.conninfo;
	answer(&q, &c->consumer);
	if (cli_has(c, "json"))
		print_json(&q, cli_str(c, "config"));
	else
		print_text(&q, cli_str(c, "config"));
	return PR_EX_OK;
}
