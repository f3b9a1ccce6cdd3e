/* cli/editor.c -- hands a text to the operator's editor and takes it back. The file is ours
 * alone and gone afterwards; an editor that fails has changed nothing. */
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_BYTES (64 << 20)

static int failed(struct pr_err *err, const char *what, const char *file)
{
	return pr_fail(err, PR_REJECT, "cannot %s %s: %s", what, file, strerror(errno));
}

/* "-" is standard input. *ret is malloc'd with a NUL behind it. */
int cli_read_file(const char *file, char **ret, size_t *ret_len, struct pr_err *err)
{
	int fd = strcmp(file, "-") == 0 ? STDIN_FILENO : open(file, O_RDONLY | O_CLOEXEC);
	struct pr_buf b = { 0 };
	char chunk[65536];
	ssize_t n = -1;

	if (fd < 0)
		return failed(err, "open", file);
	while ((n = read(fd, chunk, sizeof(chunk))) > 0 && b.len < MAX_BYTES)
		pr_buf_put(&b, chunk, (size_t)n);
	if (fd != STDIN_FILENO)
		(void)close(fd);
	if (n != 0) {
		pr_buf_free(&b);
		if (n < 0)
			return failed(err, "read", file);
		return cli_usage(err, "%s has more than %d MB", file, MAX_BYTES >> 20);
	}
	*ret = b.s ? b.s : pr_strdup("");
	*ret_len = b.len;
	return 0;
}

static int write_all(int fd, const char *s, size_t n)
{
	while (n) {
		ssize_t done = write(fd, s, n);

		if (done < 0)
			return -1;
		s += done;
		n -= (size_t)done;
	}
	return 0;
}

/* Replaces a file only with --yes. */
int cli_write_file(const struct cli *c, const char *file, const struct pr_buf *b, struct pr_err *err)
{
	int fd = open(file, O_WRONLY | O_CREAT | O_CLOEXEC | (cli_has(c, "yes") ? O_TRUNC : O_EXCL), 0644);
	int rc = 0;

	if (fd < 0) {
		(void)failed(err, "write", file);
		err->exit = errno == EEXIST ? PR_EX_REFUSED : PR_EX_FAILED;
		return err->exit == PR_EX_REFUSED ? pr_hint(err, "--yes replaces it") : -1;
	}
	if (write_all(fd, b->s, b->len) < 0)
		rc = failed(err, "write", file);
	if (close(fd) < 0 && rc == 0)
		rc = failed(err, "write", file);
	return rc;
}

static int run_editor(const char *file, struct pr_err *err)
{
	const char *editor = getenv("VISUAL");
	char *command;
	int status = 0;
	pid_t pid;

	if (!editor || !*editor)
		editor = getenv("EDITOR");
	if (!editor || !*editor)
		editor = "vi";
	command = pr_asprintf("%s \"$1\"", editor);
	pid = fork();
	if (pid == 0) {
		(void)signal(SIGPIPE, SIG_DFL);
		(void)execl("/bin/sh", "sh", "-c", command, "sh", file, (char *)NULL);
		_exit(127);
	}
	free(command);
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	(void)pr_fail(err, PR_REJECT, "the editor \"%.80s\" failed: nothing was done", editor);
	return pr_hint(err, "set EDITOR, or give the new payload by --payload FILE");
}

int cli_edit(
	const char *text, size_t len, const char *suffix, char **ret, size_t *ret_len, struct pr_err *err)
{
	const char *dir = getenv("TMPDIR");
	char *file = pr_asprintf("%s/postrider-XXXXXX%s", dir && *dir ? dir : "/tmp", suffix);
	int fd = mkostemps(file, (int)strlen(suffix), O_CLOEXEC), rc;

	if (fd < 0) {
		rc = failed(err, "make", file);
		free(file);
		return rc;
	}
	rc = write_all(fd, text, len);
	if (close(fd) < 0 || rc < 0)
		rc = failed(err, "write", file);
	if (rc == 0)
		rc = run_editor(file, err);
	if (rc == 0)
		rc = cli_read_file(file, ret, ret_len, err);
	(void)unlink(file);
	free(file);
	return rc;
}

/* A question on the terminal; only "y" and "yes" mean yes. */
int cli_agreed(const char *question)
{
	char answer[16] = "";

	(void)fflush(stdout);
	(void)fprintf(stderr, "%s [y/N] ", question);
	(void)fflush(stderr);
	if (!fgets(answer, sizeof(answer), stdin))
		return 0;
	answer[strcspn(answer, "\n")] = '\0';
	return strcasecmp(answer, "y") == 0 || strcasecmp(answer, "yes") == 0;
}
