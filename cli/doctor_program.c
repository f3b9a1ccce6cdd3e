/* cli/doctor_program.c -- what the program itself says, and whether its position fits the database. Refuses
 * to judge a second time: health is the program's own word. */
#include "cli/doctor.h"

#include <stdlib.h>
#include <string.h>

static const char *text_of(const cJSON *o, const char *name)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(o, name);

	return cJSON_IsString(item) && item->valuestring[0] ? item->valuestring : NULL;
}

static void say_state(struct doctor *d, const cJSON *root, const char *url)
{
	const char *state = text_of(root, "state"), *sentence = text_of(root, "sentence"),
		   *hint = text_of(root, "hint");
	int well = strcmp(state, "ok") == 0 || strcmp(state, "standby") == 0;

	doctor_say(d,
		well                          ? DOCTOR_OK
		: strcmp(state, "error") == 0 ? DOCTOR_FAIL
					      : DOCTOR_WARN,
		"%s says %s: %s", url, state, sentence ? sentence : "nothing more");
	if (!well && hint)
		doctor_fix(d, "%s", hint);
	else if (!well)
		doctor_fix(d, "postrider status %s", d->target);
}

void doctor_program(struct doctor *d)
{
	const char *daemon = d->c->consumer_loaded ? "postrider-consumer" : "postrider-relay";
	struct pr_err err = { 0 };
	char *url = cli_url(d->c), *body = NULL;
	cJSON *root = NULL;
	int status = 0;

	if (!d->c->loaded && !d->c->consumer_loaded) {
		doctor_say(d, DOCTOR_OK, "not asked: its address is in its config file (-c)");
	} else if (cli_fetch(d->c, url, "/status.json", &status, &body, &err) < 0) {
		doctor_err(d, DOCTOR_WARN, &err);
		doctor_fix(d, "%s %s", daemon, d->file);
	} else if (!(root = cJSON_Parse(body)) || !text_of(root, "state")) {
		doctor_say(d, DOCTOR_WARN, "%s answers, but not as %s does (status %d)", url, daemon, status);
		doctor_fix(d, status == 401 ? "set POSTRIDER_TOKEN, or http.token in the file"
					    : "something else listens there: set http.listen");
	} else {
		say_state(d, root, url);
	}
	cJSON_Delete(root);
	free(body);
	free(url);
}

void doctor_position(struct doctor *d)
{
	struct pr_err err = { 0 };
	char why[300] = "";
	int found = 0;

	if (!cli_name(d->c))
		return;
	if (cli_position_judge(d->c, d->pg, &found, why, sizeof(why), &err) < 0) {
		doctor_err(d, DOCTOR_FAIL, &err);
	} else if (*why) {
		doctor_say(d, DOCTOR_FAIL, "%s", why);
		doctor_fix(d,
			found ? "if this is the right database: postrider position adopt %s --dry-run"
			      : "the topic was lost: postrider position adopt %s --help",
			d->target);
	} else {
		doctor_say(d, DOCTOR_OK,
			found ? "the position is this database's"
			      : "no position yet: the relay's first start writes one");
	}
}
