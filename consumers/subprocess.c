/* consumers/subprocess.c -- starts, watches and ends the child of an exec handler. Refuses to wait without
 * a deadline, to leave a member of its group behind, and to hand it descriptors that are ours.
 *
 * fork and exec, not posix_spawn: PR_SET_PDEATHSIG must be set between the two. Until exec the child is a
 * copy of one thread of many, so it calls nothing but system calls; what needs memory is made before. */
#include "consumers/subprocess.h"

#include "lib/clock.h"
#include "lib/conf_check.h"
#include "lib/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_TIMEOUT  (5 * PR_SEC) /* of exec itself: a file system that hangs */
#define KILL_TIMEOUT   (1 * PR_SEC) /* a killed process is gone, unless it hangs in the kernel */
#define TICK           (20 * PR_MS) /* between two looks at a child, without pidfd */
#define LINES_A_SECOND 20
#define READS          16 /* of 4 kB, per call */
#define LAST_FD        65536

struct launch {
	char *path;
	char *const *argv;
	char **envp;
	int in[2], out[2], err[2], status[2]; /* [0] is read from */
};

static void close_fd(int *fd)
{
	if (*fd >= 0)
		(void)close(*fd);
	*fd = -1;
}

/* ---------------------------------------------------------------- before the fork */

static int config_fail(struct pr_err *err, const char *name, const char *why)
{
	(void)pr_fail(err, PR_STOP, "cannot run \"%s\": %s", name, why);
	if (err)
		err->exit = PR_EX_CONFIG;
	return pr_hint(err, "handler.command is a list: the program (found by PATH, or a path), then each "
			    "argument by itself");
}

/* Our environment and env, as one array of borrowed strings; a name of env wins. */
static char **make_env(const char *const *env)
{
	size_t n = 0, more = 0, len = 0;
	char **all;

	while (environ && environ[n])
		n++;
	while (env[more])
		more++;
	all = pr_calloc(n + more + 1, sizeof(*all));
	for (size_t i = 0; i < more; i++)
		all[len++] = (char *)(uintptr_t)env[i];
	for (size_t i = 0; i < n; i++) {
		size_t j = 0;

		while (j < more && strncmp(environ[i], env[j], strcspn(env[j], "=") + 1) != 0)
			j++;
		if (j == more)
			all[len++] = environ[i];
	}
	return all;
}

/* A pipe with both ends above 2, so that the child's dup2 cannot tread on them. */
static int make_pipe(int fds[2])
{
	int raw[2];

	if (pipe2(raw, O_CLOEXEC) < 0)
		return -1;
	for (int i = 0; i < 2; i++) {
		fds[i] = raw[i] > 2 ? raw[i] : fcntl(raw[i], F_DUPFD_CLOEXEC, 3);
		if (fds[i] != raw[i])
			(void)close(raw[i]);
	}
	return fds[0] < 0 || fds[1] < 0 ? -1 : 0;
}

/* ---------------------------------------------------------------- between fork and exec */

static void default_signals(void)
{
	sigset_t none;

	for (int s = 1; s < NSIG; s++)
		(void)signal(s, SIG_DFL);
	(void)sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
}

static void close_on_exec(void)
{
#if defined(SYS_close_range)
	if (syscall(SYS_close_range, 3U, ~0U, 4U /* CLOSE_RANGE_CLOEXEC */) == 0)
		return;
#endif
	for (int fd = 3; fd < LAST_FD; fd++)
		(void)fcntl(fd, F_SETFD, FD_CLOEXEC);
}

static _Noreturn void become(const struct launch *l, pid_t parent)
{
	int code;

	(void)setpgid(0, 0);
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Whoever started us may be gone since: then no signal comes. */
	if (getppid() != parent)
		_exit(127);
	default_signals();
	if (dup2(l->in[0], 0) == 0 && dup2(l->out[1], 1) == 1 && dup2(l->err[1], 2) == 2) {
		close_on_exec();
		(void)execve(l->path, l->argv, l->envp);
	}
	code = errno;
	(void)!write(l->status[1], &code, sizeof(code));
	_exit(127);
}

/* ---------------------------------------------------------------- start */

/* The errno of a failed exec, 0 when the program runs: the pipe closes by exec. */
static int exec_result(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int64_t deadline = pr_mono_us() + START_TIMEOUT;
	int code = 0, n;

	do
		n = poll(&p, 1, pr_until_ms(deadline));
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return ETIMEDOUT;
	if (read(fd, &code, sizeof(code)) != sizeof(code))
		return 0;
	return code;
}

static int never_runs(int code)
{
	switch (code) {
	case ENOENT:
	case EACCES:
	case EPERM:
	case ENOEXEC:
	case ENOTDIR:
	case EISDIR:
	case ELOOP:
	case EINVAL:
	case ENAMETOOLONG:
	case ELIBBAD:
	case E2BIG:
		return 1;
	default:
		return 0;
	}
}

static int no_block(int fd)
{
	return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static void adopt(struct subprocess *p, struct launch *l, pid_t pid)
{
	(void)setpgid(pid, pid); /* as the child does: whoever comes first */
	p->pid = pid;
	p->in = l->in[1];
	p->out = l->out[0];
	p->err = l->err[0];
	l->in[1] = l->out[0] = l->err[0] = -1;
	(void)no_block(p->in);
	(void)no_block(p->out);
	(void)no_block(p->err);
#if defined(SYS_pidfd_open)
	p->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
#endif
}

static int launch(struct subprocess *p, struct launch *l, struct pr_err *err)
{
	pid_t parent = getpid(), pid;
	int code;

	if (make_pipe(l->in) < 0 || make_pipe(l->out) < 0 || make_pipe(l->err) < 0 ||
		make_pipe(l->status) < 0)
		return pr_fail(err, PR_RETRY, "cannot make pipes for \"%s\": %s", l->path, strerror(errno));
	pid = fork();
	if (pid < 0)
		return pr_fail(err, PR_RETRY, "cannot fork for \"%s\": %s", l->path, strerror(errno));
	if (pid == 0)
		become(l, parent);
	adopt(p, l, pid);
	close_fd(&l->status[1]);
	code = exec_result(l->status[0]);
	if (code == 0)
		return 0;
	subprocess_stop(p, 0);
	if (never_runs(code))
		return config_fail(err, l->path, strerror(code));
	return pr_fail(err, PR_RETRY, "cannot run \"%s\": %s", l->path, strerror(code));
}

int subprocess_start(struct subprocess *p, char *const *argv, const char *const *env, struct pr_err *err)
{
	struct launch l = {
		.argv = argv, .in = { -1, -1 }, .out = { -1, -1 }, .err = { -1, -1 }, .status = { -1, -1 }
	};
	int lane = p->lane, rc = -1;

	l.path = strchr(argv[0], '/') ? pr_strdup(argv[0]) : pr_find_program(argv[0]);
	if (!l.path)
		return config_fail(err, argv[0], "it is not in PATH");
	l.envp = make_env(env);
	*p = SUBPROCESS_NONE;
	p->lane = lane;
	rc = launch(p, &l, err);
	for (int i = 0; i < 2; i++) {
		close_fd(&l.in[i]);
		close_fd(&l.out[i]);
		close_fd(&l.err[i]);
		close_fd(&l.status[i]);
	}
	free(l.path);
	free(l.envp);
	return rc;
}

/* ---------------------------------------------------------------- its words and its end */

int subprocess_ended(struct subprocess *p, int *ret_status)
{
	siginfo_t info = { 0 };

	if (p->pid == 0)
		return 1;
	if (waitid(P_PID, (id_t)p->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0)
		return 0;
	if (ret_status)
		*ret_status = info.si_code == CLD_EXITED ? info.si_status : -info.si_status;
	return 1;
}

static void tell_dropped(struct subprocess *p)
{
	if (p->said.dropped == 0)
		return;
	pr_log(PR_WARN, "handler's stderr: lines dropped", KI("lane", p->lane), KI("lines", p->said.dropped));
	p->said.dropped = 0;
}

static void end_line(struct subprocess *p)
{
	int64_t now = pr_mono_us();

	p->said.line[p->said.len] = '\0';
	if (p->said.len == 0)
		return;
	(void)snprintf(p->said.last, sizeof(p->said.last), "%s", p->said.line);
	p->said.len = 0;
	if (now - p->said.window_us >= PR_SEC) {
		tell_dropped(p);
		p->said.window_us = now;
		p->said.in_window = 0;
	}
	if (p->said.in_window++ < LINES_A_SECOND)
		pr_log(PR_INFO, "handler's stderr", KI("lane", p->lane), KI("pid", p->pid),
			KS("line", p->said.line));
	else
		p->said.dropped++;
}

static void take_words(struct subprocess *p, const char *s, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (s[i] == '\n')
			end_line(p);
		else if (p->said.len < sizeof(p->said.line) - 1)
			p->said.line[p->said.len++] = s[i] ? s[i] : ' ';
	}
}

void subprocess_said(struct subprocess *p)
{
	char buf[4096];

	for (int i = 0; i < READS && p->err >= 0; i++) {
		ssize_t n = read(p->err, buf, sizeof(buf));

		if (n > 0)
			take_words(p, buf, (size_t)n);
		else if (n == 0)
			close_fd(&p->err);
		else if (errno != EINTR)
			break;
	}
}

/* Waits for the end; what it says meanwhile is read, or it could not end. */
static int wait_end(struct subprocess *p, int64_t deadline)
{
	char sink[4096];

	while (!subprocess_ended(p, NULL)) {
		int64_t until =
			p->pidfd < 0 && pr_mono_us() + TICK < deadline ? pr_mono_us() + TICK : deadline;
		struct pollfd fds[3] = { { .fd = p->pidfd, .events = POLLIN },
			{ .fd = p->out, .events = POLLIN }, { .fd = p->err, .events = POLLIN } };

		if (pr_mono_us() >= deadline)
			return -1;
		if (poll(fds, 3, pr_until_ms(until)) <= 0)
			continue;
		if (fds[1].revents && read(p->out, sink, sizeof(sink)) == 0)
			close_fd(&p->out);
		if (fds[2].revents)
			subprocess_said(p);
	}
	return 0;
}

void subprocess_stop(struct subprocess *p, int64_t grace_us)
{
	close_fd(&p->in);
	if (p->pid > 0) {
		if (grace_us > 0) {
			(void)kill(-p->pid, SIGTERM);
			(void)wait_end(p, pr_mono_us() + grace_us);
		}
		/* Not reaped yet, so the number is still its own, and its group's: grandchildren go too. */
		(void)kill(-p->pid, SIGKILL);
		(void)kill(p->pid, SIGKILL);
		if (wait_end(p, pr_mono_us() + KILL_TIMEOUT) < 0)
			pr_log(PR_WARN, "handler's process does not die", KI("lane", p->lane),
				KI("pid", p->pid));
		subprocess_said(p);
		end_line(p);
		tell_dropped(p);
		(void)waitpid(p->pid, NULL, WNOHANG);
	}
	p->pid = 0;
	close_fd(&p->out);
	close_fd(&p->err);
	close_fd(&p->pidfd);
}
