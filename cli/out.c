/* cli/out.c -- the screen: colours only on a terminal and without NO_COLOR, data made
 * harmless (an event's text must not drive the operator's terminal), tables that fit.
 * A reader that went away (| head) is no error; a full disk is. */
#include "cli/cli.h"

#include "lib/json.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <wchar.h>

int cli_tty(FILE *f)
{
	return isatty(fileno(f)) == 1;
}

int cli_width(FILE *f)
{
	const char *s = getenv("COLUMNS");
	long n = s ? strtol(s, NULL, 10) : 0;
	struct winsize ws;

	if (n >= 20 && n <= 1000)
		return (int)n;
	if (ioctl(fileno(f), TIOCGWINSZ, &ws) == 0 && ws.ws_col >= 20)
		return ws.ws_col;
	return 80;
}

static int coloured(FILE *f)
{
	const char *no = getenv("NO_COLOR"), *term = getenv("TERM");

	return !(no && *no) && cli_tty(f) && term && strcmp(term, "dumb") != 0;
}

const char *cli_on(FILE *f, enum cli_colour colour)
{
	static const char *const codes[] = { "", "\033[1m", "\033[2m", "\033[32m", "\033[33m", "\033[31m" };

	return coloured(f) ? codes[colour] : "";
}

const char *cli_off(FILE *f)
{
	return coloured(f) ? "\033[0m" : "";
}

/* Length of the UTF-8 sequence at s and its code point; 0 when it is none. */
static size_t utf8_at(const unsigned char *s, size_t n, uint32_t *ret)
{
	size_t len = s[0] < 0x80   ? 1
		     : s[0] < 0xc2 ? 0
		     : s[0] < 0xe0 ? 2
		     : s[0] < 0xf0 ? 3
		     : s[0] < 0xf5 ? 4
				   : 0;
	uint32_t c = len == 1 ? s[0] : len ? s[0] & (0x7fu >> len) : 0;

	if (len == 0 || len > n)
		return 0;
	for (size_t i = 1; i < len; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (s[i] & 0x3f);
	}
	if ((len == 3 && c < 0x800) || (len == 4 && (c < 0x10000 || c > 0x10ffff)) || (c >> 11) == 0x1b)
		return 0;
	*ret = c;
	return len;
}

/* Controls, C1 controls (a second way to write ESC [), and marks that reorder a line. */
static int harmful(uint32_t c)
{
	return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x200e || c == 0x200f || c == 0x061c ||
	       (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069) || c == 0xfeff;
}

static void put_safe(struct pr_buf *b, const char *s, size_t n)
{
	uint32_t c = 0;
	size_t len;

	for (size_t i = 0; i < n; i += len) {
		len = utf8_at((const unsigned char *)s + i, n - i, &c);
		if (len == 0) {
			pr_buf_printf(b, "\\x%02x", (unsigned char)s[i]);
			len = 1;
		} else if (c == '\n' || c == '\t' || c == '\r') {
			pr_buf_puts(b, c == '\n' ? "\\n" : c == '\t' ? "\\t" : "\\r");
		} else if (harmful(c)) {
			pr_buf_printf(b, c < 0x100 ? "\\x%02x" : "\\u%04x", c);
		} else {
			pr_buf_put(b, s + i, len);
		}
	}
}

char *cli_safe_str(const char *s)
{
	struct pr_buf b = { 0 };

	put_safe(&b, s, strlen(s));
	return b.s ? b.s : pr_strdup("");
}

void cli_safe(FILE *f, const char *s, size_t n)
{
	struct pr_buf b = { 0 };

	put_safe(&b, s, n);
	(void)fwrite(b.s ? b.s : "", 1, b.len, f);
	pr_buf_free(&b);
}

/* Bytes of s that fill at most max cells. */
size_t cli_fit(const char *s, size_t max, size_t *ret_cells)
{
	size_t n = strlen(s), i = 0, cells = 0, len;
	uint32_t c = 0;
	int w;

	while (i < n) {
		len = utf8_at((const unsigned char *)s + i, n - i, &c);
		w = len ? wcwidth((wchar_t)c) : 1;
		if (w < 0)
			w = 1;
		if (cells + (size_t)w > max)
			break;
		cells += (size_t)w;
		i += len ? len : 1;
	}
	*ret_cells = cells;
	return i;
}

size_t cli_cells(const char *s)
{
	size_t cells;

	(void)cli_fit(s, SIZE_MAX / 2, &cells);
	return cells;
}

/* One word, with the spaces before it unless it begins a line; of one that no line can hold, as much as one
 * does. Returns its length in bytes. */
static size_t put_word(FILE *f, const char *text, int spaces, int *at, int indent, int width)
{
	size_t n = strcspn(text, " \n"), most = width > indent + 8 ? (size_t)(width - indent) : 8, fits;
	char *word = pr_asprintf("%.*s", (int)n, text);
	int cells = (int)cli_cells(word);

	if ((size_t)cells > most) {
		n = cli_fit(word, most, &fits);
		word[n] = '\0';
		cells = (int)fits;
	}

	if (*at > indent && *at + spaces + cells > width) {
		(void)fprintf(f, "\n%*s", indent, "");
		*at = indent;
	} else if (*at < indent) {
		(void)fprintf(f, "%*s", indent - *at, "");
		*at = indent;
	} else {
		(void)fprintf(f, "%*s", spaces, "");
		*at += spaces;
	}
	(void)fputs(word, f);
	*at += cells;
	free(word);
	return n;
}

void cli_fill(FILE *f, const char *text, int at, int indent)
{
	int width = cli_width(f) > 100 ? 100 : cli_width(f), spaces = at > indent;

	while (*text) {
		text += put_word(f, text, spaces, &at, indent, width);
		spaces = (int)strspn(text, " ");
		text += spaces;
		if (text[0] == '\n' && text[1] == '\n') {
			(void)fputs("\n\n", f);
			at = spaces = 0;
			text += 2;
		}
	}
	(void)fputc('\n', f);
}

void cli_text(FILE *f, const char *text, int at, int indent)
{
	char *safe = cli_safe_str(text);

	if (cli_tty(f))
		cli_fill(f, safe, at, indent);
	else
		(void)fprintf(f, "%*s%s\n", indent > at && at > 0 ? indent - at : 0, "", safe);
	free(safe);
}

/* "word: text" on stderr. */
static void talk(const char *colour, const char *word, const char *fmt, va_list ap)
{
	char *text = NULL;

	if (vasprintf(&text, fmt, ap) < 0)
		return;
	if (*word)
		(void)fprintf(stderr, "%s%s:%s", colour, word, *colour ? cli_off(stderr) : "");
	cli_text(stderr, text, *word ? (int)strlen(word) + 1 : 0, *word ? (int)strlen(word) + 2 : 0);
	free(text);
}

void cli_say(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	talk("", "", fmt, ap);
	va_end(ap);
}

void cli_hint(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	talk("", "hint", fmt, ap);
	va_end(ap);
}

void cli_warn(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	talk(cli_on(stderr, CLI_YELLOW), "warning", fmt, ap);
	va_end(ap);
}

static void talk_word(const char *colour, const char *word, const char *fmt, ...) PR_PRINTF(3, 4);
static void talk_word(const char *colour, const char *word, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	talk(colour, word, fmt, ap);
	va_end(ap);
}

/* What the server refused without a hint of its own; "" when we know no better either. */
static const char *hint_for(const struct pr_err *err)
{
	if (err->hint[0])
		return err->hint;
	if (strcmp(err->code, "3D000") == 0)
		return "createdb makes one, then postrider init; else correct dbname";
	return "";
}

int cli_fail(const struct pr_err *err)
{
	const char *hint = hint_for(err);

	talk_word(cli_on(stderr, CLI_RED), "postrider", "%s", err->text);
	if (*hint)
		talk_word("", "hint", "%s", hint);
	else if (strcmp(err->code, "42501") == 0)
		talk_word("", "hint", "GRANT outbox_operator, inbox_operator TO %s", cli_login());
	if (strcmp(err->code, "42501") == 0)
		return PR_EX_NOPERM;
	if (strcmp(err->code, "3D000") == 0)
		return PR_EX_CONFIG;
	return err->exit ? err->exit : PR_EX_FAILED;
}

int cli_failed(const struct cli *c, const struct pr_err *err)
{
	int rc = cli_fail(err);

	if (rc != PR_EX_USAGE)
		return rc;
	if (!c->verb) {
		cli_say("usage: postrider VERB [OPTION]...");
		return rc;
	}
	cli_usage_line(stderr, c->verb);
	cli_say("\"postrider %s --help\" explains it", c->verb->name);
	return rc;
}

char *cli_count(int64_t n, char *buf)
{
	char raw[24];
	int len = snprintf(raw, sizeof(raw), "%lld", (long long)n), out = 0;

	for (int i = 0; i < len; i++) {
		int left = len - i;

		if (i > (n < 0) && left % 3 == 0)
			buf[out++] = ',';
		buf[out++] = raw[i];
	}
	buf[out] = '\0';
	return buf;
}

char *cli_number(int64_t n, const char *what, char *buf)
{
	char count[32];

	(void)snprintf(buf, 64, "%s %.28s%s", cli_count(n, count), what, n == 1 ? "" : "s");
	return buf;
}

char *cli_span(double s, char *buf)
{
	long t = (long)s;

	if (s < 0.0005)
		(void)snprintf(buf, 48, "0 s");
	else if (s < 1)
		(void)snprintf(buf, 48, "%.0f ms", s * 1000);
	else if (s < 120)
		(void)snprintf(buf, 48, "%.1f s", s);
	else if (s < 2 * 3600.0)
		(void)snprintf(buf, 48, "%ld min %ld s", t / 60, t % 60);
	else if (s < 2 * 86400.0)
		(void)snprintf(buf, 48, "%ld h %ld min", t / 3600, t / 60 % 60);
	else
		(void)snprintf(buf, 48, "%ld d %ld h", t / 86400, t / 3600 % 24);
	return buf;
}

/* cJSON keeps numbers as doubles; a seq has more digits than a double. */
void cli_json_int(cJSON *obj, const char *name, int64_t n)
{
	char buf[24];

	(void)snprintf(buf, sizeof(buf), "%lld", (long long)n);
	(void)cJSON_AddRawToObject(obj, name, buf);
}

/* number: a whole number as text, all digits of it. */
void cli_json_cell(cJSON *obj, const char *name, const PGresult *res, int row, int col, int number)
{
	const char *s = PQgetisnull(res, row, col) ? NULL : PQgetvalue(res, row, col);

	if (!s)
		(void)cJSON_AddNullToObject(obj, name);
	else if (number)
		(void)cJSON_AddRawToObject(obj, name, s);
	else
		(void)cJSON_AddStringToObject(obj, name, s);
}

void cli_json_line(const cJSON *obj)
{
	char *s = cJSON_PrintUnformatted(obj);

	/* cJSON escapes controls below a space, but not DEL and C1, which only occur inside strings. */
	for (const char *p = s; p && *p; p++) {
		if (*p == 0x7f)
			(void)fputs("\\u007f", stdout);
		else if (*p == '\xc2' && (unsigned char)p[1] >= 0x80 && (unsigned char)p[1] < 0xa0)
			(void)printf("\\u%04x", (unsigned)(unsigned char)*++p);
		else
			(void)putchar(*p);
	}
	(void)putchar('\n');
	cJSON_free(s);
}

void cli_json_free_line(cJSON *obj)
{
	cli_json_line(obj);
	cJSON_Delete(obj);
}

int cli_gone(void)
{
	return fflush(stdout) != 0 || ferror(stdout);
}

/* A write may have failed long ago, with its errno: ask the descriptor itself. */
static int reader_left(void)
{
	struct pollfd p = { .fd = STDOUT_FILENO, .events = POLLOUT };

	return poll(&p, 1, 0) == 1 && (p.revents & (POLLERR | POLLHUP)) != 0;
}

int cli_flush(int rc)
{
	errno = 0;
	if (!cli_gone() || errno == EPIPE || reader_left())
		return rc;
	talk_word("", "postrider", "could not write the output%s%s", errno ? ": " : "",
		errno ? strerror(errno) : "");
	return rc ? rc : PR_EX_FAILED;
}
