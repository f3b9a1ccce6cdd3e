/* tests/unit/handler_exec_test.c -- consumers/handler_exec.c with real subprocesses that answer late, in
 * any order, too much, nonsense, or never, that die, and that leave children behind. */
#include "consumers/handler.h"

#include "lib/clock.h"
#include "lib/uuid.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define MOST  2000
#define SLACK (60 * PR_SEC) /* of a busy machine, on top of a deadline; half of the handler's own time */

/* The worker: argv is its mode and a file to leave notes in; what a message wants is its payload. */
static const char worker[] =
	"import json, os, select, signal, subprocess, sys, time\n"
	"mode, notes = sys.argv[1], sys.argv[2]\n"
	"out = sys.stdout\n"
	"def say(**a):\n"
	"    out.write(json.dumps(a) + '\\n'); out.flush()\n"
	"def note(text):\n"
	"    with open(notes, 'a') as f: f.write(text + '\\n')\n"
	"def lines():\n"
	"    for line in sys.stdin: yield json.loads(line)\n"
	"def one(m):\n"
	"    what = m['payload']\n"
	"    if what == 'hang': time.sleep(600)\n"
	"    elif what == 'busy': say(id=m['id'], error=dict(code='busy', message='all taken', "
	"retry_after=1.5))\n"
	"    elif what == 'op': say(id=m['id'], error=dict(code=m['op'], message=m['topic']))\n"
	"    elif what == 'half':\n"
	"        sys.stderr.write('cannot go on\\n'); sys.stderr.flush()\n"
	"        out.write('{\"id\": \"' + m['id']); out.flush(); os._exit(3)\n"
	"    elif what == 'kill': os.kill(os.getpid(), signal.SIGKILL)\n"
	"    elif what == 'answer and die': say(id=m['id'], ok=True); os._exit(4)\n"
	"    elif what == 'long':\n"
	"        for i in range(100): out.write('x' * (1 << 20))\n"
	"        out.flush()\n"
	"    elif what == 'close': os.close(1); time.sleep(600)\n"
	"    elif what == 'flood':\n"
	"        for i in range(50000): sys.stderr.write('noise ' * 16 + '\\n')\n"
	"        sys.stderr.flush(); say(id=m['id'], ok=True)\n"
	"    elif what == 'child':\n"
	"        note(str(subprocess.Popen(['sleep', '600']).pid)); os._exit(5)\n"
	"    elif what == 'fds':\n"
	"        say(id=m['id'], error=dict(code='fds', message=' "
	"'.join(sorted(os.listdir('/proc/self/fd')))))\n"
	"    elif what == 'env':\n"
	"        say(id=m['id'], error=dict(code='env', message=os.environ['POSTRIDER_GROUP'] + ' '\n"
	"            + os.environ['POSTRIDER_LANE']))\n"
	"    elif what.startswith('say:'): out.write(what[4:].replace('$id', m['id']) + '\\n'); out.flush()\n"
	"    elif what.startswith('twice'): say(id=m['id'], ok=True); say(id=m['id'], ok=True)\n"
	"    else: say(id=m['id'], ok=True)\n"
	"def plain():\n"
	"    for m in lines(): one(m)\n"
	"def padded():\n"
	"    for m in lines(): say(id=m['id'], ok=True, padding='p' * 60000)\n"
	"def backwards():\n"
	"    poll, rest, waiting, last = select.poll(), b'', [], {}\n"
	"    poll.register(0, select.POLLIN)\n"
	"    while True:\n"
	"        if poll.poll(30):\n"
	"            got = os.read(0, 65536)\n"
	"            if not got: return\n"
	"            rest += got\n"
	"            *whole, rest = rest.split(b'\\n')\n"
	"            waiting += [json.loads(w) for w in whole]\n"
	"            continue\n"
	"        keys = [m['key'] for m in waiting if m['key']]\n"
	"        for m in reversed(waiting):\n"
	"            bad = len(set(keys)) < len(keys) or m['key'] and last.get(m['key'], -1) >= m['offset']\n"
	"            last[m['key']] = m['offset']\n"
	"            say(id=m['id'], **(dict(error=dict(code='order')) if bad else dict(ok=True)))\n"
	"        if waiting: note(str(len(waiting)))\n"
	"        waiting = []\n"
	"def obedient():\n"
	"    def term(*_): note('term'); os._exit(0)\n"
	"    signal.signal(signal.SIGTERM, term); note('ready')\n"
	"    while True: time.sleep(600)\n"
	"def stubborn():\n"
	"    signal.signal(signal.SIGTERM, signal.SIG_IGN); note('ready')\n"
	"    while True: time.sleep(600)\n"
	"def chatty():\n"
	"    signal.signal(signal.SIGUSR1, lambda *_: (out.write('listening\\n'), out.flush(), "
	"note('said')))\n"
	"    note('ready'); plain()\n"
	"note(str(os.getpid()))\n"
	"globals()[mode]()\n";

/* ---------------------------------------------------------------- what a test holds */

static struct pr_consumer_conf conf;
static struct handler *h;
static char *argv_now[8];
static char notes[64];
static struct message *list[MOST];
static struct outcome out[MOST];
static size_t count;

static void command(const char *first, ...)
{
	va_list ap;

	conf.handler.command = (struct pr_strs){ .v = argv_now };
	va_start(ap, first);
	for (const char *s = first; s; s = va_arg(ap, const char *))
		argv_now[conf.handler.command.n++] = (char *)(uintptr_t)s;
	va_end(ap);
}

static int setup(void **state)
{
	static char group[] = "seat";
	int fd;

	(void)state;
	conf = (struct pr_consumer_conf){ .group = group };
	conf.handler.timeout_us = 2 * SLACK;
	conf.handler.response_bytes = 65536;
	conf.handler.concurrency = 8;
	(void)snprintf(notes, sizeof(notes), "/tmp/handler_exec_test.XXXXXX");
	fd = mkstemp(notes);
	return fd < 0 ? -1 : close(fd);
}

static void forget(void)
{
	while (count > 0)
		free(list[--count]);
	memset(out, 0, sizeof(out));
}

static int teardown(void **state)
{
	(void)state;
	handler_exec.close(h);
	h = NULL;
	forget();
	return unlink(notes);
}

static int try_open(int wake_fd, struct pr_err *err)
{
	struct handler_env env = { .conf = &conf, .lane = 3, .wake_fd = wake_fd };

	*err = (struct pr_err){ 0 };
	return handler_exec.open(&env, NULL, &h, err);
}

static void open_worker(const char *mode, int wake_fd)
{
	struct pr_err err;

	command("python3", "-c", worker, mode, notes, NULL);
	if (try_open(wake_fd, &err) < 0)
		fail_msg("open: %s", err.text);
}

/* Borrows both texts. */
static void add(const char *key, const char *payload)
{
	struct message *m = pr_calloc(1, sizeof(*m) + strlen(payload) + 3);
	char *json = (char *)(m + 1);

	(void)sprintf(json, "\"%s\"", payload);
	m->topic = "shop";
	m->type = "";
	m->offset = (int64_t)count;
	m->key = key;
	m->key_len = key ? strlen(key) : 0;
	m->payload = json;
	m->payload_len = strlen(json);
	m->json = 1;
	m->id[15] = (unsigned char)count;
	m->id[14] = (unsigned char)(count >> 8);
	(void)pr_uuid_print(m->id, m->id_text);
	list[count++] = m;
}

static int64_t run_op(enum op op)
{
	struct pr_err err = { 0 };
	int64_t since = pr_mono_us();

	memset(out, 0, sizeof(out));
	assert_int_equal(handler_exec.run(h, NULL, op, list, count, out, &err), 0);
	return pr_mono_us() - since;
}

static int64_t run(void)
{
	return run_op(OP_DO);
}

static void is_outcome(size_t i, enum pr_fail_class cls, const char *code)
{
	if (out[i].cls != cls || strcmp(out[i].code, code) != 0)
		fail_msg("message %zu: class %d code \"%s\": %s", i, out[i].cls, out[i].code, out[i].text);
}

static void all_handled(void)
{
	for (size_t i = 0; i < count; i++)
		is_outcome(i, PR_FAIL_NONE, "");
}

static void all_behind_from(size_t i)
{
	for (; i < count; i++)
		is_outcome(i, PR_FAIL_REPLY, "behind");
}

/* Line n (from 0) of the notes, waited for; it stays valid until the next call. */
static const char *noted(int n)
{
	static char line[200];
	int64_t deadline = pr_mono_us() + SLACK;

	while (pr_mono_us() < deadline) {
		FILE *f = fopen(notes, "r");
		int at = -1;

		while (f && at < n && fgets(line, sizeof(line), f))
			at++;
		if (f)
			(void)fclose(f);
		if (at == n && strchr(line, '\n')) {
			*strchr(line, '\n') = '\0';
			return line;
		}
		(void)poll(NULL, 0, 5);
	}
	fail_msg("the worker left no note %d", n);
	return NULL;
}

static pid_t worker_pid(int n)
{
	return (pid_t)atoi(noted(n));
}

/* Gone, or a zombie that whoever inherited it has not looked at. */
static int is_dead(pid_t pid)
{
	char path[64], text[400] = "", *state;
	FILE *f;

	(void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "r");
	if (!f)
		return 1;
	(void)!fread(text, 1, sizeof(text) - 1, f);
	(void)fclose(f);
	state = strrchr(text, ')');
	return !state || state[2] == 'Z' || state[2] == 'X';
}

static void wait_dead(pid_t pid)
{
	int64_t deadline = pr_mono_us() + SLACK;

	while (!is_dead(pid)) {
		if (pr_mono_us() >= deadline)
			fail_msg("process %d lives on", (int)pid);
		(void)poll(NULL, 0, 5);
	}
}

/* ---------------------------------------------------------------- answers */

static void answers_each(void **state)
{
	(void)state;
	open_worker("plain", -1);
	for (int i = 0; i < 500; i++)
		add(i % 3 ? "a" : NULL, "fine");
	(void)run();
	all_handled();
	(void)run();
	all_handled();
}

/* The worker collects what comes without an answer in between: never two of one key, never one out of
 * order, and as many as it may at once. It answers them backwards. */
static void order_of_keys(void **state)
{
	static const char *const keys[] = { "a", "b", "a", NULL, "c", "b", "a", NULL, "d", "" };
	int64_t most;

	(void)state;
	conf.handler.concurrency = 5;
	open_worker("backwards", -1);
	for (int i = 0; i < 40; i++)
		add(keys[i % 10], "fine");
	(void)run();
	all_handled();
	most = atoi(noted(1));
	assert_int_equal(most, 5);
}

static void a_failure_holds_its_key_only(void **state)
{
	(void)state;
	open_worker("plain", -1);
	add("a", "busy");
	add("a", "fine");
	add("b", "fine");
	add(NULL, "busy");
	add("a", "fine");
	add(NULL, "fine");
	(void)run();
	is_outcome(0, PR_FAIL_REPLY, "busy");
	assert_string_equal(out[0].text, "all taken");
	assert_int_equal(out[0].retry_after_us, 1500 * PR_MS);
	is_outcome(1, PR_FAIL_REPLY, "behind");
	is_outcome(2, PR_FAIL_NONE, "");
	is_outcome(3, PR_FAIL_REPLY, "busy");
	is_outcome(4, PR_FAIL_REPLY, "behind");
	is_outcome(5, PR_FAIL_NONE, "");
}

static void says_do_or_undo(void **state)
{
	(void)state;
	open_worker("plain", -1);
	add("a", "op");
	(void)run();
	is_outcome(0, PR_FAIL_REPLY, "do");
	(void)run_op(OP_UNDO);
	is_outcome(0, PR_FAIL_REPLY, "undo");
	assert_string_equal(out[0].text, "shop");
}

/* Each line, told as an answer: what becomes of the message. $id is its id. */
static void answers_by_table(void **state)
{
	static const struct {
		const char *line; /* inside a JSON string */
		const char *code; /* NULL: handled */
	} t[] = {
		{ "{\\\"id\\\":\\\"$id\\\",\\\"ok\\\":true}", NULL },
		{ " {\\\"ok\\\":true , \\\"more\\\":[1], \\\"id\\\":\\\"$id\\\"}\\r", NULL },
		{ "{\\\"id\\\":\\\"$id\\\",\\\"ok\\\":true,\\\"error\\\":null}", NULL },
		{ "{\\\"id\\\":\\\"$id\\\",\\\"error\\\":{}}", "failed" },
		{ "{\\\"id\\\":\\\"$id\\\",\\\"ok\\\":false,\\\"error\\\":{\\\"code\\\":\\\"no\\\"}}", "no" },
		{ "{\\\"id\\\":\\\"$id\\\",\\\"error\\\":{\\\"code\\\":\\\"behind\\\"}}", "failed" },
		{ "{\\\"id\\\":\\\"$id\\\",\\\"error\\\":{\\\"code\\\":\\\"a b\\\\u0000c\\\"}}", "a_b_c" },
		{ "{\\\"id\\\":\\\"$id\\\",\\\"error\\\":{\\\"code\\\":\\\"x\\\",\\\"retry_after\\\":1e999}}",
			"x" },
		{ "{\\\"id\\\":\\\"$id\\\",\\\"error\\\":{\\\"code\\\":\\\"x\\\",\\\"retry_after\\\":-1}}",
			"x" },
		{ "{\\\"id\\\":\\\"$id\\\"}", "garbage" },
		{ "{\\\"id\\\":\\\"$id\\\",\\\"ok\\\":false}", "garbage" },
		{ "{\\\"id\\\":\\\"$id\\\",\\\"ok\\\":true,\\\"error\\\":{}}", "garbage" },
		{ "{\\\"id\\\":\\\"$id\\\",\\\"error\\\":\\\"no\\\"}", "garbage" },
		{ "{\\\"id\\\":\\\"other\\\",\\\"ok\\\":true}", "garbage" },
		{ "{\\\"id\\\":null,\\\"ok\\\":true}", "garbage" },
		{ "{\\\"ok\\\":true}", "garbage" },
		{ "[\\\"$id\\\"]", "garbage" },
		{ "hello", "garbage" },
		{ "", "garbage" },
		{ "{\\\"id\\\":\\\"$id\\\",\\\"ok\\\":true", "garbage" },
	};
	char payload[300];

	(void)state;
	open_worker("plain", -1);
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
		forget();
		(void)snprintf(payload, sizeof(payload), "say:%s", t[i].line);
		add("a", payload);
		(void)run();
		if (!t[i].code && out[0].cls != PR_FAIL_NONE)
			fail_msg("%s: %s", t[i].line, out[0].text);
		if (t[i].code && (out[0].cls != PR_FAIL_REPLY || strcmp(out[0].code, t[i].code) != 0))
			fail_msg("%s: class %d code \"%s\"", t[i].line, out[0].cls, out[0].code);
		assert_int_equal(out[0].retry_after_us, 0);
		forget(); /* one good answer, or every garbage would make the next start wait longer */
		add("a", "fine");
		(void)run();
		all_handled();
	}
}

/* The second answer to one message answers nothing: the next message is the one to suffer. */
static void an_answer_too_many(void **state)
{
	(void)state;
	conf.handler.concurrency = 1;
	open_worker("plain", -1);
	add("a", "twice");
	add("a", "fine");
	(void)run();
	is_outcome(0, PR_FAIL_NONE, "");
	if (out[1].cls !=
		PR_FAIL_NONE) /* else it came when nothing was in flight: another process, no blame */
		is_outcome(1, PR_FAIL_REPLY, "garbage");
}

/* ---------------------------------------------------------------- deadlines and deaths */

static void a_hang_ends_at_the_deadline(void **state)
{
	int64_t took;

	(void)state;
	open_worker("plain", -1);
	add("a", "fine");
	(void)run(); /* it has started, whatever that took */
	forget();
	conf.handler.timeout_us = 2 * PR_SEC; /* enough for the first one */
	add("a", "fine");
	add("b", "hang");
	add("c", "fine");
	add("b", "fine");
	took = run();
	is_outcome(0, PR_FAIL_NONE, "");
	is_outcome(1, PR_FAIL_TIMEOUT, "");
	all_behind_from(2);
	assert_true(took >= 2 * PR_SEC && took < SLACK);
	wait_dead(worker_pid(0));
	conf.handler.timeout_us = 2 * SLACK;
	forget();
	add("a", "fine");
	(void)run();
	all_handled();
	assert_true(worker_pid(1) != worker_pid(0));
}

static void ends_are_told(void **state)
{
	(void)state;
	open_worker("plain", -1);
	add("a", "half");
	add("b", "fine");
	(void)run();
	is_outcome(0, PR_FAIL_EXIT, "3");
	assert_non_null(strstr(out[0].text, "status 3: cannot go on"));
	all_behind_from(1);
	forget();
	add("a", "fine");
	add("b", "kill");
	(void)run();
	is_outcome(0, PR_FAIL_NONE, "");
	is_outcome(1, PR_FAIL_EXIT, "signal:9");
	assert_int_equal(count, 2);
}

/* What it answered before it ended counts. */
static void last_words_count(void **state)
{
	(void)state;
	open_worker("plain", -1);
	add("a", "answer and die");
	(void)run();
	all_handled();
	wait_dead(worker_pid(0));
	forget();
	add("a", "fine");
	(void)run();
	all_handled();
}

static void a_line_without_end(void **state)
{
	struct rusage before, after;

	(void)state;
	open_worker("plain", -1);
	add("a", "long");
	add("b", "fine");
	assert_int_equal(getrusage(RUSAGE_SELF, &before), 0);
	(void)run();
	assert_int_equal(getrusage(RUSAGE_SELF, &after), 0);
	is_outcome(0, PR_FAIL_REPLY, "garbage");
	assert_non_null(strstr(out[0].text, "longer than handler.response_bytes"));
	all_behind_from(1);
	assert_true(after.ru_maxrss - before.ru_maxrss < 20 * 1024); /* kB, of the 100 MB it wrote */
}

static void a_closed_stdout(void **state)
{
	(void)state;
	open_worker("plain", -1);
	add("a", "close");
	assert_true(run() < 1 * PR_SEC + SLACK);
	is_outcome(0, PR_FAIL_REPLY, "garbage");
	assert_non_null(strstr(out[0].text, "closed its stdout"));
	wait_dead(worker_pid(0));
}

/* 20 MB one way and 60 MB the other, and it does not read while it writes: both pipes are full at once. */
static void both_pipes_full(void **state)
{
	char *big = pr_calloc(1, 20001);

	(void)state;
	memset(big, 'b', 20000);
	conf.handler.concurrency = 1000;
	open_worker("padded", -1);
	for (int i = 0; i < 1000; i++)
		add(NULL, big);
	free(big);
	(void)run();
	all_handled();
}

static void grandchildren_go_too(void **state)
{
	int64_t took;

	(void)state;
	open_worker("plain", -1);
	add("a", "child");
	took = run();
	is_outcome(0, PR_FAIL_EXIT, "5");
	assert_true(took < SLACK); /* it has our pipes, and 600 s to live */
	wait_dead(worker_pid(1));
}

/* Lines of the log that hold the word, between two calls of capture. */
static int capture(int on, const char *word)
{
	static FILE *file;
	static int saved;
	char line[5000];
	int n = 0;

	if (on) {
		file = tmpfile();
		assert_non_null(file);
		saved = dup(STDERR_FILENO);
		assert_int_equal(dup2(fileno(file), STDERR_FILENO), STDERR_FILENO);
		return 0;
	}
	assert_int_equal(dup2(saved, STDERR_FILENO), STDERR_FILENO);
	(void)close(saved);
	rewind(file);
	while (fgets(line, sizeof(line), file))
		n += strstr(line, word) != NULL;
	(void)fclose(file);
	return n;
}

static void a_flood_of_stderr(void **state)
{
	int64_t took;
	int lines;

	(void)state;
	open_worker("plain", -1);
	add("a", "flood");
	(void)capture(1, NULL);
	took = run();
	lines = capture(0, "noise");
	all_handled();
	assert_in_range(lines, 1, 20 * (took / PR_SEC + 2));
}

/* ---------------------------------------------------------------- between runs */

static void a_death_in_idleness_is_nobodys_fault(void **state)
{
	pid_t pid;

	(void)state;
	open_worker("plain", -1);
	add("a", "fine");
	(void)run();
	pid = worker_pid(0);
	assert_int_equal(kill(pid, SIGKILL), 0);
	wait_dead(pid);
	(void)run();
	all_handled();
	assert_true(worker_pid(1) != pid);
}

static void garbage_in_idleness_is_nobodys_fault(void **state)
{
	(void)state;
	open_worker("chatty", -1);
	assert_string_equal(noted(1), "ready");
	add("a", "fine");
	(void)run();
	assert_int_equal(kill(worker_pid(0), SIGUSR1), 0);
	assert_string_equal(noted(2), "said");
	(void)run();
	all_handled();
	wait_dead(worker_pid(0));
}

/* ---------------------------------------------------------------- open, wake, close */

static void commands_that_do_not_run(void **state)
{
	struct pr_err err;

	(void)state;
	command("/nonexistent/handler", NULL);
	assert_int_equal(try_open(-1, &err), -1);
	assert_int_equal(err.kind, PR_STOP);
	assert_int_equal(err.exit, PR_EX_CONFIG);
	assert_non_null(strstr(err.text, "cannot run \"/nonexistent/handler\": No such file"));
	command("no-such-handler-in-path", NULL);
	assert_int_equal(try_open(-1, &err), -1);
	assert_int_equal(err.exit, PR_EX_CONFIG);
	assert_non_null(strstr(err.text, "not in PATH"));
	command(notes, NULL); /* a file without the right to run */
	assert_int_equal(try_open(-1, &err), -1);
	assert_int_equal(err.kind, PR_STOP);
	assert_non_null(strstr(err.text, "Permission denied"));
	assert_true(err.hint[0]);
	command("/bin/sh", "-c", "echo broken >&2; exit 7", NULL);
	assert_int_equal(try_open(-1, &err), -1);
	assert_int_equal(err.kind, PR_RETRY);
	assert_non_null(strstr(err.text, "as soon as it was started (status 7): broken"));
	assert_null(h);
}

/* A program that goes away later is told as the shell does. */
static void a_program_that_vanishes(void **state)
{
	char path[100], script[] = "#!/bin/sh\nread line\nexit 9\n";
	struct pr_err err;
	int fd;

	(void)state;
	(void)snprintf(path, sizeof(path), "%s.sh", notes);
	fd = open(path, O_CREAT | O_WRONLY | O_EXCL, 0700);
	assert_true(fd >= 0 && write(fd, script, strlen(script)) == (ssize_t)strlen(script));
	(void)close(fd);
	command(path, NULL);
	assert_int_equal(try_open(-1, &err), 0);
	add("a", "fine");
	(void)run();
	is_outcome(0, PR_FAIL_EXIT, "9");
	assert_int_equal(unlink(path), 0);
	(void)run();
	is_outcome(0, PR_FAIL_EXIT, "127");
	assert_non_null(strstr(out[0].text, "cannot run"));
}

static void only_three_descriptors(void **state)
{
	int leak = open("/dev/null", O_RDONLY); /* without O_CLOEXEC, as a library might */

	(void)state;
	assert_true(leak > 2);
	open_worker("plain", -1);
	add("a", "fds");
	(void)run();
	is_outcome(0, PR_FAIL_REPLY, "fds");
	assert_string_equal(out[0].text, "0 1 2 3"); /* 3: of the listing itself */
	forget();
	add("a", "env");
	(void)run();
	assert_string_equal(out[0].text, "seat 3");
	(void)close(leak);
}

static void default_signals(void **state)
{
	sigset_t usr2, old;
	struct pr_err err;

	(void)state;
	(void)sigemptyset(&usr2);
	(void)sigaddset(&usr2, SIGUSR2);
	assert_int_equal(pthread_sigmask(SIG_BLOCK, &usr2, &old), 0);
	command("/bin/sh", "-c", "grep -E '^Sig(Ign|Blk)' /proc/self/status | sort >>\"$0\"; exec cat", notes,
		NULL);
	assert_int_equal(try_open(-1, &err), 0);
	assert_int_equal(pthread_sigmask(SIG_SETMASK, &old, NULL), 0);
	assert_string_equal(noted(0), "SigBlk:\t0000000000000000");
	/* 32 and 33 are the C library's own: nobody can set them, so whoever started us may have ignored
	 * them. */
	assert_int_equal(strncmp(noted(1), "SigIgn:\t", 8), 0);
	assert_int_equal(strtoull(noted(1) + 8, NULL, 16) & ~(3ULL << 31), 0);
}

static void a_wake_ends_it(void **state)
{
	struct itimerspec in = { .it_value = { .tv_nsec = 100 * 1000 * 1000 } };
	int timer = timerfd_create(CLOCK_MONOTONIC, 0);

	(void)state;
	assert_true(timer >= 0);
	open_worker("plain", timer);
	add("a", "hang");
	add("b", "fine");
	assert_int_equal(timerfd_settime(timer, 0, &in, NULL), 0);
	assert_true(run() < SLACK);
	is_outcome(0, PR_FAIL_REPLY, "behind");
	is_outcome(1, PR_FAIL_REPLY, "behind");
	assert_true(run() < SLACK); /* still readable: nothing is begun */
	is_outcome(0, PR_FAIL_REPLY, "behind");
	handler_exec.close(h);
	h = NULL;
	(void)close(timer);
}

/* What a run that was given up had asked is not answered in the next one. */
static void after_a_wake_another_process(void **state)
{
	struct itimerspec in = { .it_value = { .tv_sec = 1 } }; /* by then it is asked */
	int timer = timerfd_create(CLOCK_MONOTONIC, 0);
	uint64_t n;

	(void)state;
	assert_true(timer >= 0);
	open_worker("plain", timer);
	add("a", "fine");
	(void)run();
	all_handled();
	list[0]->payload = "\"hang\"";
	assert_int_equal(timerfd_settime(timer, 0, &in, NULL), 0);
	(void)run();
	is_outcome(0, PR_FAIL_REPLY, "behind");
	assert_int_equal(read(timer, &n, sizeof(n)), sizeof(n));
	forget();
	add("a", "fine");
	(void)run();
	all_handled();
	assert_true(worker_pid(1) != worker_pid(0));
	handler_exec.close(h);
	h = NULL;
	(void)close(timer);
}

static void close_asks_then_kills(void **state)
{
	int64_t since;
	pid_t pid;

	(void)state;
	open_worker("obedient", -1);
	assert_string_equal(noted(1), "ready");
	pid = worker_pid(0);
	handler_exec.close(h);
	h = NULL;
	assert_string_equal(noted(2), "term");
	assert_true(is_dead(pid));
	assert_int_equal(truncate(notes, 0), 0);
	open_worker("stubborn", -1);
	assert_string_equal(noted(1), "ready");
	pid = worker_pid(0);
	since = pr_mono_us();
	handler_exec.close(h);
	h = NULL;
	assert_in_range(pr_mono_us() - since, 900 * PR_MS, 1 * PR_SEC + SLACK);
	assert_true(is_dead(pid));
	handler_exec.close(NULL);
}

static void *open_and_leave(void *arg)
{
	(void)arg;
	open_worker("plain", -1);
	(void)worker_pid(0);
	return NULL;
}

/* As when we are killed: whoever started it is gone, and nobody told it to end. */
static void dies_with_its_thread(void **state)
{
	pthread_t t;

	(void)state;
	assert_int_equal(pthread_create(&t, NULL, open_and_leave, NULL), 0);
	assert_int_equal(pthread_join(t, NULL), 0);
	wait_dead(worker_pid(0));
}

/* docs/examples/handlers/mail.py: a letter once, taken back once; what it refuses, and what it cannot do
 * now. */
static void the_example(void **state)
{
	char directory[] = "/tmp/handler_exec_letters.XXXXXX", path[200], text[100] = "";
	struct pr_err err;
	FILE *f;

	(void)state;
	assert_non_null(mkdtemp(directory));
	command("python3", "docs/examples/handlers/mail.py", directory, NULL);
	if (try_open(-1, &err) < 0)
		fail_msg("open: %s", err.text);
	add("a", "nobody");
	add("b", "");
	list[1]->payload = "{\"to\": \"you\",\n\"text\": \"hello\"}";
	list[1]->payload_len = strlen(list[1]->payload);
	(void)run();
	is_outcome(0, PR_FAIL_REPLY, "reject");
	is_outcome(1, PR_FAIL_NONE, "");
	(void)snprintf(path, sizeof(path), "%s/%s.txt", directory, list[1]->id_text);
	f = fopen(path, "r");
	assert_non_null(f);
	assert_non_null(fgets(text, sizeof(text), f));
	(void)fclose(f);
	assert_string_equal(text, "to: you\n");
	(void)run(); /* as after a crash: done before */
	is_outcome(1, PR_FAIL_NONE, "");
	for (int i = 0; i < 2; i++) {
		(void)run_op(OP_UNDO);
		all_handled();
		assert_int_equal(access(path, F_OK), -1);
	}
	assert_int_equal(rmdir(directory), 0);
	(void)run();
	is_outcome(1, PR_FAIL_REPLY, "retry");
	assert_int_equal(out[1].retry_after_us, 1500 * PR_MS);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(answers_each),
		T(order_of_keys),
		T(a_failure_holds_its_key_only),
		T(says_do_or_undo),
		T(answers_by_table),
		T(an_answer_too_many),
		T(a_hang_ends_at_the_deadline),
		T(ends_are_told),
		T(last_words_count),
		T(a_line_without_end),
		T(a_closed_stdout),
		T(both_pipes_full),
		T(grandchildren_go_too),
		T(a_flood_of_stderr),
		T(a_death_in_idleness_is_nobodys_fault),
		T(garbage_in_idleness_is_nobodys_fault),
		T(commands_that_do_not_run),
		T(a_program_that_vanishes),
		T(only_three_descriptors),
		T(default_signals),
		T(a_wake_ends_it),
		T(after_a_wake_another_process),
		T(close_asks_then_kills),
		T(dies_with_its_thread),
		T(the_example),
	};

	(void)signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
