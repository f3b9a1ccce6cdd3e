/* cli/postrider_main.c -- argv to a verb of the table and its exit code. Refuses to start
 * a verb whose command line is not wholly right. */
#include "cli/cli.h"

#include <curl/curl.h>
#include <locale.h>
#include <signal.h>
#include <string.h>

/* The words everybody tries first. */
static const char *alias(const char *word)
{
	if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)
		return "help";
	if (strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0)
		return "version";
	return NULL;
}

static int run(struct cli *c, int argc, char **argv)
{
	struct pr_err err = { 0 };

	if (cli_parse(c, argc, argv, &err) < 0)
		return cli_failed(c, &err);
	if (cli_has(c, "help")) {
		cli_help_verb(stdout, c->verb);
		return PR_EX_OK;
	}
	if (cli_target(c, &err) < 0)
		return cli_failed(c, &err);
	return c->verb->run(c);
}

int main(int argc, char **argv)
{
	struct cli c;
	char word[16];
	int rc;

	(void)setlocale(LC_CTYPE, "");
	/* A reader that leaves (| head) shows as a failed write, never in the middle of a change. */
	(void)signal(SIGPIPE, SIG_IGN);
	(void)curl_global_init(CURL_GLOBAL_DEFAULT);
	if (argc > 1 && alias(argv[1])) {
		(void)snprintf(word, sizeof(word), "%s", alias(argv[1]));
		argv[1] = word;
	}
	rc = cli_flush(run(&c, argc, argv));
	cli_release(&c);
	curl_global_cleanup();
	return rc;
}
