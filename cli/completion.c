/* cli/completion.c -- completion scripts for bash, zsh and fish, made from the table.
 * The scripts ask nobody while completing: no database, no relay, no second start of
 * this program. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

/* Each second word of "parked ...", or each first word of all verbs, once. */
static void words(FILE *f, const char *under)
{
	const char *last = "";
	size_t n = under ? strlen(under) : 0;

	for (const struct cli_verb *v = cli_verbs; v->name; v++) {
		size_t len = strcspn(v->name, " ");

		if (under && strncmp(v->name, under, n) == 0 && v->name[n] == ' ')
			(void)fprintf(f, "%s ", v->name + n + 1);
		if (!under && (strncmp(last, v->name, len) != 0 || last[len] != v->name[len]))
			(void)fprintf(f, "%.*s ", (int)len, v->name);
		last = v->name;
	}
}

static int is_first_of_prefix(const struct cli_verb *v)
{
	size_t len = strcspn(v->name, " ");

	return v->name[len] == ' ' && (v == cli_verbs || strncmp(v[-1].name, v->name, len + 1) != 0);
}

static void bash_verb(FILE *f, const struct cli_verb *v)
{
	(void)fprintf(f, "\t'%s') options='", v->name);
	for (const struct cli_opt *o = v->opts; o->name; o++) {
		(void)fprintf(f, "--%s ", o->name);
		if (o->letter)
			(void)fprintf(f, "-%c ", o->letter);
	}
	(void)fprintf(f, "'; values='");
	for (const struct cli_opt *o = v->opts; o->name; o++) {
		if (o->type != CLI_FLAG && o->type != CLI_FILE) {
			(void)fprintf(f, " --%s ", o->name);
			if (o->letter)
				(void)fprintf(f, " -%c ", o->letter);
		}
	}
	(void)fprintf(f, "'; operands='%s' ;;\n", v->words ? v->words : "");
}

void cli_complete_bash(FILE *f)
{
	(void)fputs("# bash completion of postrider, made by `postrider completion bash`\n"
		    "_postrider() {\n"
		    "\tlocal cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
		    "\tlocal verb=${COMP_WORDS[1]-} options='' values='' operands=''\n"
		    "\tCOMPREPLY=()\n"
		    "\tif [ \"$COMP_CWORD\" -eq 1 ]; then\n"
		    "\t\tCOMPREPLY=($(compgen -W '",
		f);
	words(f, NULL);
	(void)fputs("' -- \"$cur\")); return\n\tfi\n\tcase $verb in\n", f);
	for (const struct cli_verb *v = cli_verbs; v->name; v++) {
		int n = (int)strcspn(v->name, " ");

		if (!is_first_of_prefix(v))
			continue;
		(void)fprintf(f, "\t%.*s)\n\t\tif [ \"$COMP_CWORD\" -eq 2 ]; then COMPREPLY=($(compgen -W '",
			n, v->name);
		char *under = pr_asprintf("%.*s", n, v->name);
		words(f, under);
		free(under);
		(void)fputs("' -- \"$cur\")); return; fi\n\t\tverb=\"$verb ${COMP_WORDS[2]}\" ;;\n", f);
	}
	(void)fputs("\tesac\n\tcase $verb in\n", f);
	for (const struct cli_verb *v = cli_verbs; v->name; v++)
		bash_verb(f, v);
	(void)fputs("\tesac\n"
		    "\tcase $prev in --config|-c|--file|-f) COMPREPLY=($(compgen -f -- \"$cur\")); return ;; "
		    "esac\n"
		    "\tcase $values in *\" $prev \"*) return ;; esac\n"
		    "\tif [ \"$verb\" = help ]; then operands='",
		f);
	words(f, NULL);
	(void)fputs("'; fi\n"
		    "\tCOMPREPLY=($(compgen -W \"$options $operands\" -- \"$cur\"))\n"
		    "}\n"
		    "complete -o filenames -F _postrider postrider\n",
		f);
}

/* Inside '...' of a shell, and for zsh also inside [...] and before a colon. */
static void quoted(FILE *f, const char *s, int zsh)
{
	for (; *s; s++) {
		if (*s == '\'')
			(void)fputs("'\\''", f);
		else if (zsh && strchr("[]:\\", *s))
			(void)fprintf(f, "\\%c", *s);
		else
			(void)fputc(*s, f);
	}
}

static void zsh_option(FILE *f, const struct cli_opt *o)
{
	/* '(-c --config)'{-c,--config}'[doc]:FILE:_files' */
	(void)fputs("\t\t'", f);
	if (o->many)
		(void)fputc('*', f);
	else if (o->letter)
		(void)fprintf(f, "(-%c --%s)", o->letter, o->name);
	if (o->letter)
		(void)fprintf(f, "'{-%c,--%s}'", o->letter, o->name);
	else
		(void)fprintf(f, "--%s", o->name);
	(void)fputc('[', f);
	quoted(f, o->doc, 1);
	(void)fputc(']', f);
	if (o->arg) {
		(void)fputc(':', f);
		quoted(f, o->arg, 1);
		(void)fputs(o->type == CLI_FILE ? ":_files" : ": ", f);
	}
	(void)fputs("' \\\n", f);
}

static void zsh_list(FILE *f, const char *array, const char *under)
{
	size_t n = under ? strlen(under) : 0;

	(void)fprintf(f, "\t%s=(\n", array);
	for (const struct cli_verb *v = cli_verbs; v->name; v++) {
		if (under ? strncmp(v->name, under, n) != 0 || v->name[n] != ' '
			  : strchr(v->name, ' ') != NULL) {
			if (!under && is_first_of_prefix(v))
				(void)fprintf(
					f, "\t\t'%.*s:%s'\n", (int)strcspn(v->name, " "), v->name, v->group);
			continue;
		}
		(void)fprintf(f, "\t\t'%s:", v->name + (under ? n + 1 : 0));
		quoted(f, v->does, 1);
		(void)fputs("'\n", f);
	}
	(void)fputs("\t)\n", f);
}

void cli_complete_zsh(FILE *f)
{
	(void)fputs("#compdef postrider\n# made by `postrider completion zsh`\n"
		    "_postrider() {\n\tlocal verb=$words[2]\n\tlocal -a verbs\n"
		    "\tif (( CURRENT == 2 )); then\n",
		f);
	zsh_list(f, "verbs", NULL);
	(void)fputs("\t_describe verb verbs; return\n\tfi\n\tcase $verb in\n", f);
	for (const struct cli_verb *v = cli_verbs; v->name; v++) {
		char *under;

		if (!is_first_of_prefix(v))
			continue;
		under = pr_asprintf("%.*s", (int)strcspn(v->name, " "), v->name);
		(void)fprintf(f, "\t%s)\n\tif (( CURRENT == 3 )); then\n", under);
		zsh_list(f, "verbs", under);
		(void)fputs("\t_describe verb verbs; return\n\tfi\n"
			    "\tverb=\"$verb $words[3]\"; shift words; (( CURRENT-- )) ;;\n",
			f);
		free(under);
	}
	(void)fputs("\tesac\n\tshift words; (( CURRENT-- ))\n\tcase $verb in\n", f);
	for (const struct cli_verb *v = cli_verbs; v->name; v++) {
		(void)fprintf(f, "\t'%s') _arguments \\\n", v->name);
		for (const struct cli_opt *o = v->opts; o->name; o++)
			zsh_option(f, o);
		if (v->words)
			(void)fprintf(f, "\t\t'1:word:(%s)' ;;\n", v->words);
		else
			(void)fputs("\t\t'*:: :' ;;\n", f);
	}
	(void)fputs("\tesac\n}\nif [ \"$funcstack[1]\" = _postrider ]; then _postrider \"$@\"; "
		    "else compdef _postrider postrider; fi\n",
		f);
}

static void fish_condition(FILE *f, const struct cli_verb *v)
{
	int n = (int)strcspn(v->name, " ");

	(void)fprintf(f, "-n '__fish_seen_subcommand_from %.*s", n, v->name);
	if (v->name[n])
		(void)fprintf(f, "; and __fish_seen_subcommand_from %s", v->name + n + 1);
	(void)fputs("'", f);
}

static void fish_option(FILE *f, const struct cli_verb *v, const struct cli_opt *o)
{
	(void)fputs("complete -c postrider ", f);
	fish_condition(f, v);
	(void)fprintf(f, " -l %s", o->name);
	if (o->letter)
		(void)fprintf(f, " -s %c", o->letter);
	if (o->arg)
		(void)fputs(o->type == CLI_FILE ? " -r -F" : " -x", f);
	(void)fputs(" -d '", f);
	for (const char *s = o->doc; *s; s++)
		(void)fprintf(f, *s == '\'' || *s == '\\' ? "\\%c" : "%c", *s);
	(void)fputs("'\n", f);
}

static void fish_verb(FILE *f, const struct cli_verb *v)
{
	int n = (int)strcspn(v->name, " ");

	if (!v->name[n]) {
		(void)fprintf(f, "complete -c postrider -n __fish_use_subcommand -a %s -d '%s'\n", v->name,
			v->does);
	} else {
		if (is_first_of_prefix(v))
			(void)fprintf(f, "complete -c postrider -n __fish_use_subcommand -a %.*s -d '%s'\n",
				n, v->name, v->group);
		(void)fprintf(f,
			"complete -c postrider -n '__fish_seen_subcommand_from %.*s; and test (count "
			"(commandline -opc)) -eq 2' -a %s -d '%s'\n",
			n, v->name, v->name + n + 1, v->does);
	}
	if (v->words) {
		(void)fputs("complete -c postrider ", f);
		fish_condition(f, v);
		(void)fprintf(f, " -a '%s'\n", v->words);
	}
	for (const struct cli_opt *o = v->opts; o->name; o++)
		fish_option(f, v, o);
}

void cli_complete_fish(FILE *f)
{
	(void)fputs("# fish completion of postrider, made by `postrider completion fish`\n"
		    "complete -c postrider -f\n",
		f);
	for (const struct cli_verb *v = cli_verbs; v->name; v++)
		fish_verb(f, v);
}

int verb_completion(struct cli *c)
{
	static const struct {
		const char *shell;
		void (*print)(FILE *f);
	} shells[] = { { "bash", cli_complete_bash }, { "zsh", cli_complete_zsh },
		{ "fish", cli_complete_fish } };
	struct pr_err err = { 0 };

	for (size_t i = 0; i < sizeof(shells) / sizeof(*shells); i++) {
		if (strcmp(c->args[0], shells[i].shell) == 0) {
			shells[i].print(stdout);
			return PR_EX_OK;
		}
	}
	(void)cli_usage(&err, "no completion for \"%.40s\"", c->args[0]);
	(void)pr_hint(&err, "one of: bash, zsh, fish");
	return cli_failed(c, &err);
}
