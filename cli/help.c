/* cli/help.c -- the help texts, the man page and the reference page, all from the table.
 * Refuses to know anything about a verb that the table does not say. */
#include "cli/cli.h"
#include "lib/json.h"

#include <curl/curl.h>
#include <librdkafka/rdkafka.h>
#include <stdlib.h>
#include <string.h>

#define DOES "operate a Postrider outbox: set it up, look at it, help it along"

struct code {
	int code;
	const char *means;
};

static const struct code exits[] = {
	{ PR_EX_OK, "done; healthy" },
	{ PR_EX_FAILED, "failed" },
	{ PR_EX_USAGE, "wrong usage: nothing was done" },
	{ PR_EX_UNHEALTHY, "not healthy" },
	{ PR_EX_NOT_FOUND, "not found" },
	{ PR_EX_REFUSED, "refused, or needs --yes: nothing was done" },
	{ PR_EX_UNAVAILABLE, "a server cannot be reached" },
	{ PR_EX_NOPERM, "no permission" },
	{ PR_EX_CONFIG, "wrong configuration, or a database that is not ready for us" },
	{ -1, NULL },
};

static const char *const environment[][2] = {
	{ "POSTRIDER_CONNINFO", "the database, when neither --conninfo nor -c says it" },
	{ "POSTRIDER_BROKERS", "Kafka's bootstrap servers, when neither --brokers nor -c says them" },
	{ "POSTRIDER_URL", "the relay's HTTP address, when neither --url nor -c says it" },
	{ "POSTRIDER_TOKEN", "the token of the relay's HTTP port, when -c does not say it" },
	{ "PGHOST, PGDATABASE, PGPASSWORD, ...", "as for every program that uses libpq; so does ~/.pgpass" },
	{ "NO_COLOR", "when set, no colours" },
	{ "COLUMNS", "width of the screen, when the terminal does not tell" },
	{ NULL, NULL },
};

static void heading(FILE *f, const char *text)
{
	(void)fprintf(f, "\n%s%s%s\n", cli_on(f, CLI_BOLD), text, cli_off(f));
}

void cli_usage_line(FILE *f, const struct cli_verb *v)
{
	(void)fprintf(f, "usage: postrider %s [OPTION]...%s%s\n", v->name, *v->args ? " " : "", v->args);
}

static void overview_line(FILE *f, const struct cli_verb *v)
{
	(void)fprintf(f, "  %-15s", v->name);
	cli_fill(f, v->does, 17, 19);
}

void cli_help_overview(FILE *f)
{
	const char *group = "";

	(void)fputs("postrider:", f);
	cli_fill(f, DOES, 10, 2);
	(void)fputs("\nusage: postrider VERB [OPTION]...\n", f);
	for (const struct cli_verb *v = cli_verbs; v->name; v++) {
		if (strcmp(group, v->group) != 0)
			heading(f, group = v->group);
		overview_line(f, v);
	}
	(void)fprintf(f, "\n\"postrider VERB --help\" explains one, with examples.\n");
}

/* "-l, --limit N" */
static char *option_str(const struct cli_opt *o)
{
	char letter[8] = "    ";

	if (o->letter)
		(void)snprintf(letter, sizeof(letter), "-%c, ", o->letter);
	return pr_asprintf("%s--%s%s%s", letter, o->name, o->arg ? " " : "", o->arg ? o->arg : "");
}

static char *option_doc(const struct cli_opt *o)
{
	return pr_asprintf("%s%s%s%s%s", o->doc, o->def ? " (default: " : "", o->def ? o->def : "",
		o->def ? ")" : "", o->many ? "; may be repeated" : "");
}

static void print_options(FILE *f, const struct cli_opt *opts)
{
	heading(f, "Options");
	for (const struct cli_opt *o = opts; o->name; o++) {
		char *name = option_str(o), *doc = option_doc(o);

		(void)fprintf(f, "  %-27s", name);
		if (strlen(name) > 27)
			(void)fputc('\n', f);
		cli_fill(f, doc, strlen(name) > 27 ? 0 : 29, 31);
		free(name);
		free(doc);
	}
}

static void print_examples(FILE *f, const char *examples)
{
	heading(f, "Examples");
	while (*examples) {
		size_t n = strcspn(examples, "\n");
		int remark = examples[0] == '#';

		(void)fprintf(f, "  %s%.*s%s\n", remark ? cli_on(f, CLI_DIM) : "", (int)n, examples,
			remark ? cli_off(f) : "");
		examples += n + (examples[n] == '\n');
	}
}

void cli_help_verb(FILE *f, const struct cli_verb *v)
{
	(void)fprintf(f, "postrider %s:", v->name);
	cli_fill(f, v->does, (int)strlen(v->name) + 11, 2);
	(void)fputc('\n', f);
	cli_usage_line(f, v);
	(void)fputc('\n', f);
	cli_fill(f, v->doc, 0, 0);
	print_options(f, v->opts);
	if (v->json) {
		heading(f, "JSON");
		(void)fputs("  ", f);
		cli_fill(f, v->json, 2, 2);
	}
	print_examples(f, v->examples);
}

/* Text as troff: no line may start with a dot, a backslash is \e, a hyphen stays one. */
static void troff(FILE *f, const char *s, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (s[i] == '\\')
			(void)fputs("\\e", f);
		else if (s[i] == '-')
			(void)fputs("\\-", f);
		else if (s[i] == '\'')
			(void)fputs("\\(aq", f);
		else if (s[i] == '.' && (i == 0 || s[i - 1] == '\n'))
			(void)fputs("\\&.", f);
		else
			(void)fputc(s[i], f);
	}
}

static void troff_s(FILE *f, const char *s)
{
	troff(f, s, strlen(s));
}

static void troff_paragraphs(FILE *f, const char *doc)
{
	const char *end;

	while ((end = strstr(doc, "\n\n"))) {
		troff(f, doc, (size_t)(end - doc));
		(void)fputs("\n.PP\n", f);
		doc = end + 2;
	}
	troff_s(f, doc);
	(void)fputc('\n', f);
}

static void troff_option(FILE *f, const struct cli_opt *o)
{
	char *doc = option_doc(o);

	(void)fputs(".TP\n", f);
	if (o->letter)
		(void)fprintf(f, "\\fB\\-%c\\fR, ", o->letter);
	(void)fputs("\\fB\\-\\-", f);
	troff_s(f, o->name);
	(void)fputs("\\fR", f);
	if (o->arg) {
		(void)fputs(" \\fI", f);
		troff_s(f, o->arg);
		(void)fputs("\\fR", f);
	}
	(void)fputc('\n', f);
	troff_s(f, doc);
	(void)fputs(".\n", f);
	free(doc);
}

static void troff_verb(FILE *f, const struct cli_verb *v)
{
	(void)fprintf(f, ".SS \"postrider %s\"\n", v->name);
	(void)fprintf(f, ".B postrider %s\n[\\fIOPTION\\fR]...", v->name);
	(void)fprintf(f, "%s%s\n.PP\n", *v->args ? " " : "", v->args);
	troff_paragraphs(f, v->doc);
	for (const struct cli_opt *o = v->opts; o->name; o++)
		troff_option(f, o);
	(void)fputs(".PP\n", f);
	if (v->json) {
		(void)fputs("With \\fB\\-\\-json\\fR: ", f);
		troff_s(f, v->json);
		(void)fputs(".\n.PP\n", f);
	}
	(void)fputs(".EX\n", f);
	troff_s(f, v->examples);
	(void)fputs("\n.EE\n", f);
}

void cli_help_man(FILE *f)
{
	(void)fputs(".\\\" Made by `postrider help --man`: do not edit.\n", f);
	(void)fprintf(f, ".TH POSTRIDER 1 \"\" \"Postrider " PR_VERSION "\" \"User Commands\"\n");
	(void)fprintf(f, ".SH NAME\npostrider \\- %s\n", DOES);
	(void)fputs(".SH SYNOPSIS\n.B postrider\n\\fIVERB\\fR [\\fIOPTION\\fR]...\n.SH DESCRIPTION\n", f);
	(void)fputs("Data goes to standard output, everything else to standard error. Verbs that cannot be "
		    "undone "
		    "need \\fB\\-\\-yes\\fR and have \\fB\\-\\-dry\\-run\\fR.\n.SH VERBS\n",
		f);
	for (const struct cli_verb *v = cli_verbs; v->name; v++)
		troff_verb(f, v);
	(void)fputs(".SH EXIT STATUS\n", f);
	for (const struct code *e = exits; e->means; e++) {
		(void)fprintf(f, ".TP\n.B %d\n", e->code);
		troff_s(f, e->means);
		(void)fputs(".\n", f);
	}
	(void)fputs(".SH ENVIRONMENT\n", f);
	for (int i = 0; environment[i][0]; i++) {
		(void)fprintf(f, ".TP\n.B %s\n", environment[i][0]);
		troff_s(f, environment[i][1]);
		(void)fputs(".\n", f);
	}
	(void)fputs(".SH SEE ALSO\n.BR postrider\\-relay (1),\n.BR psql (1)\n", f);
}

/* A cell of a Markdown table: a bar would end it. */
static void md_cell(FILE *f, const char *s)
{
	for (; *s; s++)
		(void)fprintf(f, *s == '|' ? "\\%c" : "%c", *s);
}

static void md_verb(FILE *f, const struct cli_verb *v)
{
	(void)fprintf(f, "\n## postrider %s\n\n", v->name);
	(void)fprintf(f, "    postrider %s [OPTION]...%s%s\n\n", v->name, *v->args ? " " : "", v->args);
	(void)fprintf(f, "%s.\n\n%s\n\n| option | |\n|---|---|\n", v->does, v->doc);
	for (const struct cli_opt *o = v->opts; o->name; o++) {
		char *name = option_str(o), *doc = option_doc(o);

		(void)fputs("| `", f);
		md_cell(f, name + strspn(name, " "));
		(void)fputs("` | ", f);
		md_cell(f, doc);
		(void)fputs(" |\n", f);
		free(name);
		free(doc);
	}
	if (v->json)
		(void)fprintf(f, "\n`--json`: %s.\n", v->json);
	(void)fprintf(f, "\n```sh\n%s\n```\n", v->examples);
}

void cli_help_markdown(FILE *f)
{
	const char *group = "";

	(void)fputs("<!-- Made by `postrider help --markdown`: do not edit. -->\n# postrider\n\n", f);
	(void)fprintf(f,
		"The command line tool to %s. Data goes to standard output, everything else to standard "
		"error. Verbs that cannot be undone need `--yes` and have `--dry-run`.\n",
		DOES);
	for (const struct cli_verb *v = cli_verbs; v->name; v++) {
		if (strcmp(group, v->group) != 0)
			(void)fprintf(f, "\n**%s**\n\n", group = v->group);
		(void)fprintf(f, "- `%s`: %s\n", v->name, v->does);
	}
	for (const struct cli_verb *v = cli_verbs; v->name; v++)
		md_verb(f, v);
	(void)fputs("\n## Exit status\n\n| code | means |\n|---|---|\n", f);
	for (const struct code *e = exits; e->means; e++)
		(void)fprintf(f, "| %d | %s |\n", e->code, e->means);
	(void)fputs("\n## Environment\n\n| variable | means |\n|---|---|\n", f);
	for (int i = 0; environment[i][0]; i++)
		(void)fprintf(f, "| `%s` | %s |\n", environment[i][0], environment[i][1]);
}

int verb_help(struct cli *c)
{
	char *name = pr_asprintf("%s%s%s", c->nargs ? c->args[0] : "", c->nargs > 1 ? " " : "",
		c->nargs > 1 ? c->args[1] : "");
	const struct cli_verb *v = cli_find(name);
	struct pr_err err = { 0 };
	int rc = PR_EX_OK;

	if (cli_has(c, "man")) {
		cli_help_man(stdout);
	} else if (cli_has(c, "markdown")) {
		cli_help_markdown(stdout);
	} else if (c->nargs == 0) {
		cli_help_overview(stdout);
	} else if (v) {
		cli_help_verb(stdout, v);
	} else if (c->nargs == 1 && cli_is_prefix(name)) {
		(void)printf("postrider %s:\n\n", name);
		for (v = cli_verbs; v->name; v++)
			if (strncmp(v->name, name, strlen(name)) == 0)
				overview_line(stdout, v);
	} else {
		(void)cli_usage(&err, "unknown verb \"%.60s\"", name);
		(void)pr_hint(&err, "\"postrider help\" lists the verbs");
		rc = cli_failed(c, &err);
	}
	free(name);
	return rc;
}

int verb_version(struct cli *c)
{
	curl_version_info_data *curl = curl_version_info(CURLVERSION_NOW);
	int pq = PQlibVersion();
	char *libpq = pr_asprintf("%d.%d", pq / 10000, pq % 10000);
	cJSON *o = cJSON_CreateObject();

	(void)cJSON_AddStringToObject(o, "version", PR_VERSION);
	(void)cJSON_AddStringToObject(o, "librdkafka", rd_kafka_version_str());
	(void)cJSON_AddStringToObject(o, "libpq", libpq);
	(void)cJSON_AddStringToObject(o, "libcurl", curl->version);
	if (cli_has(c, "json"))
		cli_json_line(o);
	else
		(void)printf("postrider %s (librdkafka %s, libpq %s, libcurl %s)\n", PR_VERSION,
			rd_kafka_version_str(), libpq, curl->version);
	cJSON_Delete(o);
	free(libpq);
	return PR_EX_OK;
}
