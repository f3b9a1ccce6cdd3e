/* lib/conf_text.c -- reads a config file and makes one flat text of it and its includes,
 * in which libconfig 1.5 finds none of the things it gets wrong: integers that wrap,
 * NUL bytes that cut values, includes that loop or leave the directory, nesting that
 * exhausts its parser, ten thousand keys (its duplicate check is quadratic), a comment on
 * a last line without newline. Refuses everything that is not a small regular file.
 *
 * The scanner knows libconfig's tokens (strings, comments, names, numbers, brackets) and
 * leaves the grammar to libconfig. Where the two could disagree it refuses. */
#include "lib/conf_text.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define MAX_DEPTH    16
#define MAX_NAME     64
#define MAX_KEYS     4096
#define MAX_FILES    64
#define MAX_INCLUDES 8 /* nesting */
#define MAX_PATH     (MAX_DEPTH * (MAX_NAME + 16))

struct frame {
	size_t path_len; /* of the path before this bracket */
	int index;       /* of the element, in a list or array; -1 in a group */
};

struct scan {
	struct pr_conf_text *t;
	struct pr_err *err;
	const char *dir; /* real path of the file's directory; NULL: no includes */
	char path[MAX_PATH];
	size_t path_len;
	char name[MAX_NAME + 1]; /* the key whose value comes next, "" when none */
	struct frame frames[MAX_DEPTH];
	int depth;
	int include_depth;
	size_t stack[MAX_INCLUDES + 1]; /* files being read, to see a loop */
};

/* One file under the scanner. */
struct cursor {
	size_t file;
	int line;
	const char *begin, *p, *end;
};

int pr_conf_error(struct pr_err *err, const char *where, const char *key, const char *fmt, ...)
{
	char reason[400];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(reason, sizeof(reason), fmt, ap);
	va_end(ap);
	(void)pr_fail(err, PR_REJECT, "%s%s%s%s%s", where ? where : "", where ? ": " : "", key ? key : "",
		key ? ": " : "", reason);
	if (err)
		err->exit = PR_EX_CONFIG;
	return -1;
}

const struct pr_conf_line *pr_conf_text_line(const struct pr_conf_text *t, int line)
{
	size_t i = line > 0 ? (size_t)line - 1 : 0;

	return &t->lines[i < t->nlines ? i : t->nlines - 1];
}

const char *pr_conf_text_key(const struct pr_conf_text *t, int line)
{
	const char *key = NULL;

	for (size_t i = 0; i < t->nmarks && t->marks[i].line <= line; i++)
		key = t->marks[i].path;
	return key;
}

int pr_conf_error_at(
	const struct pr_conf_text *t, int line, const char *key, struct pr_err *err, const char *fmt, ...)
{
	const struct pr_conf_line *l = pr_conf_text_line(t, line);
	char reason[400], where[400];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(reason, sizeof(reason), fmt, ap);
	va_end(ap);
	(void)snprintf(where, sizeof(where), "%.380s:%d", t->files[l->file].name, l->line);
	return pr_conf_error(err, where, key, "%s", reason);
}

static const char *kind_of_file(mode_t mode)
{
	if (S_ISDIR(mode))
		return "a directory";
	if (S_ISFIFO(mode))
		return "a FIFO";
	if (S_ISSOCK(mode))
		return "a socket";
	return "a device";
}

static int read_all(int fd, size_t max, char **ret, size_t *ret_len, struct pr_err *err)
{
	size_t len = 0, cap = 4096;
	char *buf = pr_malloc(cap + 1);
	ssize_t n;

	while (len <= max) {
		if (len == cap)
			buf = pr_realloc(buf, (cap *= 2) + 1);
		n = read(fd, buf + len, cap - len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			free(buf);
			return pr_conf_error(err, NULL, NULL, "cannot be read: %s", strerror(errno));
		}
		if (n == 0)
			break;
		len += (size_t)n;
	}
	if (len > max) {
		free(buf);
		return pr_conf_error(err, NULL, NULL, "is larger than %zu kB", max / 1024);
	}
	buf[len] = '\0';
	*ret = buf;
	*ret_len = len;
	return 0;
}

int pr_conf_slurp(
	const char *path, size_t max, char **ret, size_t *ret_len, struct stat *ret_st, struct pr_err *err)
{
	struct stat st;
	int rc = -1;
	/* O_NONBLOCK: opening a FIFO without a writer would wait for ever. */
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

	if (fd < 0)
		return pr_conf_error(err, NULL, NULL, "cannot be opened: %s", strerror(errno));
	if (fstat(fd, &st) < 0)
		(void)pr_conf_error(err, NULL, NULL, "cannot be read: %s", strerror(errno));
	else if (!S_ISREG(st.st_mode))
		(void)pr_conf_error(
			err, NULL, NULL, "is %s, a regular file is needed", kind_of_file(st.st_mode));
	else
		rc = read_all(fd, max, ret, ret_len, err);
	(void)close(fd);
	if (rc == 0 && ret_st)
		*ret_st = st;
	return rc;
}

/* ---- the flat text ---- */

static void put_line(struct pr_conf_text *t, size_t file, int line)
{
	if (t->nlines == t->caplines) {
		t->caplines = t->caplines ? t->caplines * 2 : 256;
		t->lines = pr_realloc(t->lines, t->caplines * sizeof(*t->lines));
	}
	t->lines[t->nlines++] = (struct pr_conf_line){ .file = file, .line = line };
}

static void put_mark(struct pr_conf_text *t, const char *path)
{
	if (t->nmarks == t->capmarks) {
		t->capmarks = t->capmarks ? t->capmarks * 2 : 64;
		t->marks = pr_realloc(t->marks, t->capmarks * sizeof(*t->marks));
	}
	t->marks[t->nmarks++] = (struct pr_conf_mark){ .line = (int)t->nlines, .path = pr_strdup(path) };
}

static void put(struct pr_conf_text *t, const char *s, size_t n)
{
	if (t->cap - t->len < n + 1) {
		t->cap = (t->cap + n + 1) * 2;
		t->s = pr_realloc(t->s, t->cap);
	}
	memcpy(t->s + t->len, s, n);
	t->len += n;
	t->s[t->len] = '\0';
}

static size_t put_file(struct pr_conf_text *t, const char *name, const struct stat *st)
{
	t->files = pr_realloc(t->files, (t->nfiles + 1) * sizeof(*t->files));
	t->files[t->nfiles] = (struct pr_conf_file){ .name = pr_strdup(name) };
	if (st)
		t->files[t->nfiles].st = *st;
	return t->nfiles++;
}

void pr_conf_text_free(struct pr_conf_text *t)
{
	for (size_t i = 0; i < t->nfiles; i++)
		free(t->files[i].name);
	for (size_t i = 0; i < t->nmarks; i++)
		free(t->marks[i].path);
	free(t->files);
	free(t->marks);
	free(t->lines);
	free(t->s);
	memset(t, 0, sizeof(*t));
}

/* ---- the scanner ---- */

#define refuse(s, c, ...) refuse_at((s), (c), (c)->line, __VA_ARGS__)

static int refuse_at(struct scan *s, const struct cursor *c, int line, const char *fmt, ...) PR_PRINTF(4, 5);

/* With the key whose value it is, unless it begins with "@": an include belongs to none. */
static int refuse_at(struct scan *s, const struct cursor *c, int line, const char *fmt, ...)
{
	char where[400], reason[400];
	const char *key = s->t->nmarks && *fmt != '@' ? s->t->marks[s->t->nmarks - 1].path : NULL;
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(reason, sizeof(reason), fmt, ap);
	va_end(ap);
	(void)snprintf(where, sizeof(where), "%.380s:%d", s->t->files[c->file].name, line);
	return pr_conf_error(s->err, where, key, "%s", reason);
}

/* Copies one byte of the source. */
static int take(struct scan *s, struct cursor *c)
{
	char ch = *c->p;

	if (ch == '\0')
		return refuse(s, c, "a NUL byte in the file");
	if (s->t->len >= PR_CONF_MAX_BYTES)
		return refuse(
			s, c, "the file and its includes are larger than %d kB", PR_CONF_MAX_BYTES / 1024);
	put(s->t, &ch, 1);
	c->p++;
	if (ch == '\n')
		put_line(s->t, c->file, ++c->line);
	return 0;
}

static int take_n(struct scan *s, struct cursor *c, size_t n)
{
	while (n-- > 0)
		if (take(s, c) < 0)
			return -1;
	return 0;
}

static int looking_at(const struct cursor *c, const char *word)
{
	size_t n = strlen(word);

	return (size_t)(c->end - c->p) >= n && memcmp(c->p, word, n) == 0;
}

static int scan_line_comment(struct scan *s, struct cursor *c)
{
	while (c->p < c->end && *c->p != '\n')
		if (take(s, c) < 0)
			return -1;
	return 0;
}

static int scan_comment(struct scan *s, struct cursor *c)
{
	int line = c->line;

	if (take_n(s, c, 2) < 0)
		return -1;
	while (c->p < c->end && !looking_at(c, "*/"))
		if (take(s, c) < 0)
			return -1;
	if (c->p == c->end)
		return refuse_at(s, c, line, "a comment that does not end");
	return take_n(s, c, 2);
}

/* At a backslash: how many bytes belong to the escape; 0 for one that gives a NUL byte. */
static size_t escape_len(const struct cursor *c)
{
	const char *p = c->p;

	if (c->end - p >= 4 && (p[1] == 'x' || p[1] == 'X') && isxdigit((unsigned char)p[2]) &&
		isxdigit((unsigned char)p[3]))
		return p[2] == '0' && p[3] == '0' ? 0 : 4;
	return c->end - p >= 2 && (p[1] == '\\' || p[1] == '"') ? 2 : 1;
}

static int scan_string(struct scan *s, struct cursor *c)
{
	int line = c->line;
	size_t n = 1;

	do {
		if (take_n(s, c, n) < 0)
			return -1;
		if (c->p == c->end)
			return refuse_at(s, c, line, "a string that does not end");
		n = *c->p == '\\' ? escape_len(c) : 1;
		if (n == 0)
			return refuse(s, c, "\\x00 would cut the string");
	} while (*c->p != '"');
	return take(s, c);
}

static int digits_only(const char *s, size_t n, int (*is)(int))
{
	for (size_t i = 0; i < n; i++)
		if (!is((unsigned char)s[i]))
			return 0;
	return n > 0;
}

/* libconfig 1.5 takes 2147483648 for -2147483648 and 0xFFFFFFFF for -1. */
static int check_integer(
	struct scan *s, const struct cursor *c, const char *text, const char *digits, int base, int wide)
{
	intmax_t v;

	if (base == 10 && digits[0] == '0' && digits[1] != '\0')
		return refuse(s, c, "%.40s has a leading zero", text);
	errno = 0;
	v = strtoimax(digits, NULL, base);
	if (*text == '-')
		v = -v;
	if (errno == ERANGE)
		return refuse(s, c, "%.40s does not fit in 64 bits", text);
	if (!wide && (v > INT32_MAX || v < INT32_MIN))
		return refuse(s, c, "%.40s does not fit in 32 bits; write larger numbers as a string, \"5M\"",
			text);
	return 0;
}

static int check_number(struct scan *s, const struct cursor *c, char *text)
{
	char *digits = text + (*text == '-' || *text == '+');
	size_t n = strlen(digits);
	int wide = 0;
	char *end;

	while (n > 1 && wide < 2 && digits[n - 1] == 'L') {
		wide++;
		n--;
	}
	if (digits == text && digits[0] == '0' && (digits[1] == 'x' || digits[1] == 'X') && n > 2 &&
		digits_only(digits + 2, n - 2, isxdigit)) {
		digits[n] = '\0';
		return check_integer(s, c, text, digits + 2, 16, wide > 0);
	}
	if (digits_only(digits, n, isdigit)) {
		digits[n] = '\0';
		return check_integer(s, c, text, digits, 10, wide > 0);
	}
	(void)strtod(text, &end);
	if (*end != '\0' || strpbrk(text, "xX"))
		return refuse(s, c, "%.40s is not a number; values with a unit need quotes", text);
	return 0;
}

static int scan_number(struct scan *s, struct cursor *c)
{
	char text[64];
	size_t n = 0;
	const char *p = c->p;

	do {
		n++;
		p++;
	} while (p < c->end && (isalnum((unsigned char)*p) || *p == '.' || *p == '_' ||
				       ((*p == '+' || *p == '-') && (p[-1] == 'e' || p[-1] == 'E'))));
	if (n >= sizeof(text))
		return refuse(s, c, "a number of %zu characters", n);
	memcpy(text, c->p, n);
	text[n] = '\0';
	if (check_number(s, c, text) < 0)
		return -1;
	return take_n(s, c, n);
}

static int is_name_char(char ch)
{
	return isalnum((unsigned char)ch) || ch == '-' || ch == '_' || ch == '*';
}

static int scan_name(struct scan *s, struct cursor *c)
{
	char path[MAX_PATH + MAX_NAME + 2];
	size_t n = 0;

	while (c->p + n < c->end && is_name_char(c->p[n]))
		n++;
	if (n > MAX_NAME)
		return refuse(s, c, "a name of more than %d characters", MAX_NAME);
	memcpy(s->name, c->p, n);
	s->name[n] = '\0';
	if (strcasecmp(s->name, "true") == 0 || strcasecmp(s->name, "false") == 0) {
		s->name[0] = '\0';
		return take_n(s, c, n);
	}
	if (s->t->nmarks >= MAX_KEYS)
		return refuse(s, c, "more than %d keys", MAX_KEYS);
	(void)snprintf(
		path, sizeof(path), "%.*s%s%s", (int)s->path_len, s->path, s->path_len ? "." : "", s->name);
	put_mark(s->t, path);
	return take_n(s, c, n);
}

static int scan_open(struct scan *s, struct cursor *c)
{
	struct frame *up = s->depth > 0 ? &s->frames[s->depth - 1] : NULL, *f;
	size_t room;

	if (s->depth == MAX_DEPTH)
		return refuse(s, c, "nested more than %d deep", MAX_DEPTH);
	f = &s->frames[s->depth++];
	f->path_len = s->path_len;
	f->index = *c->p == '{' ? -1 : 0;
	room = sizeof(s->path) - s->path_len;
	if (up && up->index >= 0)
		(void)snprintf(s->path + s->path_len, room, "[%d]", up->index);
	else if (s->name[0])
		(void)snprintf(s->path + s->path_len, room, "%s%s", s->path_len ? "." : "", s->name);
	s->path_len += strlen(s->path + s->path_len);
	s->name[0] = '\0';
	return take(s, c);
}

static int scan_close(struct scan *s, struct cursor *c)
{
	if (s->depth > 0) {
		s->path_len = s->frames[--s->depth].path_len;
		s->path[s->path_len] = '\0';
	}
	s->name[0] = '\0';
	return take(s, c);
}

static int scan_comma(struct scan *s, struct cursor *c)
{
	if (s->depth > 0 && s->frames[s->depth - 1].index >= 0)
		s->frames[s->depth - 1].index++;
	return take(s, c);
}

static int refuse_garbage(struct scan *s, const struct cursor *c, unsigned char ch)
{
	if (isgraph(ch))
		return refuse(s, c, "unexpected \"%c\"; strings need quotes", ch);
	return refuse(s, c, "unexpected byte 0x%02x; strings need quotes", ch);
}

static int scan_include(struct scan *s, struct cursor *c);

static int scan_token(struct scan *s, struct cursor *c)
{
	unsigned char ch = (unsigned char)*c->p;

	if (ch == '#' || looking_at(c, "//"))
		return scan_line_comment(s, c);
	if (looking_at(c, "/*"))
		return scan_comment(s, c);
	if (ch == '"')
		return scan_string(s, c);
	if (ch == '@')
		return scan_include(s, c);
	if (isalpha(ch) || ch == '*')
		return scan_name(s, c);
	if (isdigit(ch) || ch == '+' || ch == '-' || ch == '.')
		return scan_number(s, c);
	if (ch == '{' || ch == '(' || ch == '[')
		return scan_open(s, c);
	if (ch == '}' || ch == ')' || ch == ']')
		return scan_close(s, c);
	if (ch == ',')
		return scan_comma(s, c);
	if (ch != '\0' && !strchr("=:; \t\r\n\f", ch))
		return refuse_garbage(s, c, ch);
	return take(s, c);
}

static int scan_file(struct scan *s, size_t file, const char *text, size_t n)
{
	struct cursor c = { .file = file, .line = 1, .begin = text, .p = text, .end = text + n };

	put_line(s->t, file, 1);
	if (n >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
		(void)refuse(s, &c, "the file begins with a byte order mark");
		return pr_hint(s->err, "save it as UTF-8 without BOM");
	}
	if (n >= 2 && (memcmp(text, "\xff\xfe", 2) == 0 || memcmp(text, "\xfe\xff", 2) == 0)) {
		(void)refuse(s, &c, "the file is UTF-16");
		return pr_hint(s->err, "save it as UTF-8 without BOM");
	}
	while (c.p < c.end)
		if (scan_token(s, &c) < 0)
			return -1;
	/* libconfig 1.5 takes a comment for an error when no newline ends it. */
	put(s->t, "\n", 1);
	put_line(s->t, file, c.line + 1);
	return 0;
}

/* ---- includes ---- */

/* At "@include "name"": the name, *ret_len bytes of the directive; NULL when it is not well formed. */
static char *include_name(const struct cursor *c, size_t *ret_len)
{
	const char *p = c->p + strlen("@include"), *q = c->p;

	while (q > c->begin && (q[-1] == ' ' || q[-1] == '\t'))
		q--;
	if (!looking_at(c, "@include") || (q > c->begin && q[-1] != '\n'))
		return NULL;
	q = p;
	while (p < c->end && (*p == ' ' || *p == '\t'))
		p++;
	if (p == q || p == c->end || *p != '"')
		return NULL;
	q = ++p;
	while (p < c->end && *p != '"' && *p != '\n' && *p != '\\' && *p != '\0')
		p++;
	if (p == c->end || *p != '"')
		return NULL;
	*ret_len = (size_t)(p + 1 - c->p);
	return strndup(q, (size_t)(p - q));
}

static int has_dotdot(const char *path)
{
	for (const char *p = path; p; p = strchr(p, '/')) {
		p += *p == '/';
		if (strncmp(p, "..", 2) == 0 && (p[2] == '/' || p[2] == '\0'))
			return 1;
	}
	return 0;
}

/* The real path of an include: inside the directory of the file, also behind symbolic links. */
static char *include_path(struct scan *s, struct cursor *c, const char *name)
{
	char *joined, *real;
	size_t n;

	if (!s->dir) {
		(void)refuse(s, c, "@include \"%.100s\": not possible here", name);
		return NULL;
	}
	if (*name == '\0' || *name == '/' || has_dotdot(name)) {
		(void)refuse(s, c, "@include \"%.100s\": leaves the directory of the file", name);
		return NULL;
	}
	joined = pr_asprintf("%s/%s", s->dir, name);
	real = realpath(joined, NULL);
	free(joined);
	if (!real) {
		(void)refuse(s, c, "@include \"%.100s\": %s", name, strerror(errno));
		return NULL;
	}
	n = strcmp(s->dir, "/") == 0 ? 0 : strlen(s->dir);
	if (strncmp(real, s->dir, n) != 0 || real[n] != '/') {
		(void)refuse(s, c, "@include \"%.100s\": leaves the directory of the file", name);
		free(real);
		return NULL;
	}
	return real;
}

/* "etc/relay.cfg" including "x.cfg" -> "etc/x.cfg" */
static char *include_shown(const struct pr_conf_text *t, const char *name)
{
	const char *top = t->files[0].name, *slash = strrchr(top, '/');

	return slash ? pr_asprintf("%.*s/%s", (int)(slash - top), top, name) : pr_strdup(name);
}

static int include_allowed(struct scan *s, struct cursor *c, const char *name, const struct stat *st)
{
	for (int i = 0; i <= s->include_depth; i++) {
		const struct stat *up = &s->t->files[s->stack[i]].st;

		if (up->st_dev == st->st_dev && up->st_ino == st->st_ino)
			return refuse(s, c, "@include \"%.100s\": includes itself", name);
	}
	if (s->include_depth == MAX_INCLUDES)
		return refuse(s, c, "@include \"%.100s\": nested more than %d deep", name, MAX_INCLUDES);
	if (s->t->nfiles == MAX_FILES)
		return refuse(s, c, "@include \"%.100s\": more than %d files", name, MAX_FILES);
	return 0;
}

static int include_file(struct scan *s, struct cursor *c, const char *name, const char *path)
{
	char *text = NULL, *shown = NULL;
	struct pr_err why;
	struct stat st;
	size_t n;
	int rc = -1;

	if (pr_conf_slurp(path, PR_CONF_MAX_BYTES, &text, &n, &st, &why) < 0)
		return refuse(s, c, "@include \"%.100s\": %s", name, why.text);
	if (include_allowed(s, c, name, &st) < 0)
		goto out;
	shown = include_shown(s->t, name);
	put(s->t, "\n", 1);
	s->stack[++s->include_depth] = put_file(s->t, shown, &st);
	rc = scan_file(s, s->stack[s->include_depth], text, n);
	s->include_depth--;
	/* The rest of the directive's line goes on where the included text ended. */
	s->t->lines[s->t->nlines - 1] = (struct pr_conf_line){ .file = c->file, .line = c->line };
out:
	free(shown);
	free(text);
	return rc;
}

static int scan_include(struct scan *s, struct cursor *c)
{
	size_t n = 0;
	char *name = include_name(c, &n), *path;
	int rc = -1;

	if (!name)
		return refuse(s, c, "@ begins nothing but @include \"file\" on a line of its own");
	path = include_path(s, c, name);
	if (path && include_file(s, c, name, path) == 0) {
		c->p += n;
		rc = 0;
	}
	free(path);
	free(name);
	return rc;
}

static char *real_dir(const char *file)
{
	const char *slash = strrchr(file, '/');
	char *dir, *real;

	if (!slash)
		return realpath(".", NULL);
	dir = strndup(file, slash == file ? 1 : (size_t)(slash - file));
	real = dir ? realpath(dir, NULL) : NULL;
	free(dir);
	return real;
}

int pr_conf_text_memory(const char *name, const char *s, size_t n, struct pr_conf_text *t, struct pr_err *err)
{
	struct scan scan = { .t = t, .err = err };

	scan.stack[0] = put_file(t, name, NULL);
	return scan_file(&scan, 0, s, n);
}

int pr_conf_text_read(const char *file, struct pr_conf_text *t, struct pr_err *err)
{
	struct scan scan = { .t = t, .err = err };
	char *text = NULL, *dir = NULL;
	struct pr_err why;
	struct stat st;
	size_t n;
	int rc;

	if (pr_conf_slurp(file, PR_CONF_MAX_BYTES, &text, &n, &st, &why) < 0)
		return pr_conf_error(err, file, NULL, "%s", why.text);
	dir = real_dir(file);
	scan.dir = dir;
	scan.stack[0] = put_file(t, file, &st);
	rc = scan_file(&scan, 0, text, n);
	free(dir);
	free(text);
	return rc;
}
