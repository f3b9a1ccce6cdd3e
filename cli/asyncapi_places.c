/* cli/asyncapi_places.c -- a catalogue's paths as a tree: payload.items[].name is a member of each element of
 * a member. Reads what lib/shape.c wrote; of another text it takes nothing. */
#include "cli/asyncapi.h"
#include "lib/json_path.h"

#include <stdlib.h>
#include <string.h>

static struct place *child(struct place *in, const char *name, size_t len, int element, int any)
{
	struct place **at = &in->child;

	for (; *at; at = &(*at)->next)
		if ((*at)->element == element && (*at)->any == any && strlen((*at)->name) == len &&
			memcmp((*at)->name, name, len) == 0)
			return *at;
	*at = pr_calloc(1, sizeof(**at));
	(*at)->name = pr_asprintf("%.*s", (int)len, name);
	(*at)->element = element;
	(*at)->any = any;
	return *at;
}

/* ["a.b"]: the quoted name; *path moves behind the bracket. */
static struct place *quoted(struct place *in, const char **path)
{
	struct pr_buf name = { 0 };
	struct place *p = NULL;
	const char *s = *path + 1, *end = s + 1;

	while (*end && *end != '"')
		end += *end == '\\' && end[1] ? 2 : 1;
	if (*end == '"' && end[1] == ']' && pr_json_str(&name, s, (size_t)(end + 1 - s)) == 0) {
		p = child(in, name.s ? name.s : "", name.len, 0, 0);
		*path = end + 2;
	}
	pr_buf_free(&name);
	return p;
}

struct place *place_at(struct place *root, const char *path)
{
	struct place *at = root;

	if (strncmp(path, "payload", 7) != 0)
		return NULL;
	for (path += 7; at && *path;) {
		size_t n;

		if (strncmp(path, "[]", 2) == 0) {
			at = child(at, "", 0, 1, 0);
			path += 2;
		} else if (strncmp(path, "[\"", 2) == 0) {
			at = quoted(at, &path);
		} else if (*path == '.') {
			path++;
			n = strcspn(path, ".[");
			at = n == 1 && *path == '*' ? child(at, "", 0, 0, 1)
			     : n                    ? child(at, path, n, 0, 0)
						    : NULL;
			path += n;
		} else {
			return NULL;
		}
	}
	return at;
}

unsigned place_kind(const char *word)
{
	static const char *const words[] = { "null", "boolean", "integer", "number", "string", "object",
		"array" };

	for (unsigned i = 0; i < 7; i++)
		if (strcmp(word, words[i]) == 0)
			return 1u << i;
	return 0;
}

/* As deep as a payload's places: 32. */
void place_free(struct place *p)
{
	struct place *next;

	for (struct place *c = p->child; c; c = next) {
		next = c->next;
		place_free(c);
		free(c);
	}
	free(p->name);
	free(p->sample);
	free(p->pii);
}
