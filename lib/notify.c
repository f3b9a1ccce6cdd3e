/* lib/notify.c -- datagrams to the service manager's socket, by path or abstract. Refuses to fail: who cannot
 * be told is not told, and the manager acts on silence. */
#include "lib/notify.h"

#include "lib/clock.h"
#include "lib/err.h"
#include "lib/pulse.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LOOK_US  PR_SEC /* how often the state is looked at */
#define SIGNS    3      /* of life within the watchdog's time */
#define SEND_MAX 600

static struct {
	int fd; /* -1: nobody listens */
	struct sockaddr_un to;
	socklen_t to_len;
	int64_t watchdog_us; /* 0: none */
	int64_t sign_us;     /* monotonic: the next one is due */
	char said[SEND_MAX]; /* the last STATUS= */
} manager = { .fd = -1 };

static void tell(const char *fmt, ...) PR_PRINTF(1, 2);

static void tell(const char *fmt, ...)
{
	char text[SEND_MAX];
	va_list ap;

	if (manager.fd < 0)
		return;
	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	(void)sendto(manager.fd, text, strlen(text), MSG_NOSIGNAL, (const struct sockaddr *)&manager.to,
		manager.to_len);
}

/* "/path", or "@name" of the abstract name space: as many bytes as it has, the first a NUL. */
static int address(const char *name)
{
	size_t n = strlen(name);

	if ((*name != '/' && *name != '@') || n < 2 || n >= sizeof(manager.to.sun_path))
		return -1;
	manager.to.sun_family = AF_UNIX;
	memcpy(manager.to.sun_path, name, n);
	if (*name == '@')
		manager.to.sun_path[0] = '\0';
	manager.to_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n);
	return 0;
}

static int64_t watchdog_of(const char *usec, const char *pid)
{
	int64_t us = usec ? strtoll(usec, NULL, 10) : 0;

	if (pid && strtoll(pid, NULL, 10) != getpid())
		return 0;
	return us > 0 ? us : 0;
}

void pr_notify_begin(void)
{
	const struct timeval second = { .tv_sec = 1 };
	const char *name = getenv("NOTIFY_SOCKET");

	manager.watchdog_us = watchdog_of(getenv("WATCHDOG_USEC"), getenv("WATCHDOG_PID"));
	if (name && address(name) == 0)
		manager.fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (manager.fd >= 0)
		(void)setsockopt(manager.fd, SOL_SOCKET, SO_SNDTIMEO, &second, sizeof(second));
	(void)unsetenv("NOTIFY_SOCKET");
	(void)unsetenv("WATCHDOG_USEC");
	(void)unsetenv("WATCHDOG_PID");
}

void pr_notify_ready(void)
{
	tell("READY=1");
}

void pr_notify_reloading(void)
{
	tell("RELOADING=1\nMONOTONIC_USEC=%" PRId64, pr_mono_us());
}

void pr_notify_stopping(int64_t drain_us)
{
	tell("STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=%" PRId64, (int64_t)(drain_us + PR_PULSE_US));
}

void pr_notify_patience(int64_t us)
{
	if (manager.watchdog_us == 0)
		return;
	tell("WATCHDOG_USEC=%" PRId64 "\nWATCHDOG=1", us + manager.watchdog_us);
}

static void say_state(const char *state, const char *sentence)
{
	char said[SEND_MAX - 8];

	(void)snprintf(said, sizeof(said), "%s: %s", state, sentence);
	said[strcspn(said, "\n")] = '\0';
	if (strcmp(said, manager.said) == 0)
		return;
	(void)snprintf(manager.said, sizeof(manager.said), "%s", said);
	tell("STATUS=%s", said);
}

int pr_notify_turn(const char *state, const char *sentence)
{
	int64_t now = pr_mono_us(), look_us = LOOK_US, silent_us;
	const char *silent = pr_pulse_silent(&silent_us);
	char text[120];

	if (manager.fd < 0)
		return -1;
	(void)snprintf(text, sizeof(text), "the %s thread does not come round", silent ? silent : "");
	say_state(silent ? "hung" : state, silent ? text : sentence);
	if (manager.watchdog_us == 0)
		return (int)(look_us / PR_MS);
	if (!silent && now >= manager.sign_us) {
		tell("WATCHDOG=1");
		manager.sign_us = now + manager.watchdog_us / SIGNS;
	}
	if (manager.watchdog_us / SIGNS < look_us)
		look_us = manager.watchdog_us / SIGNS;
	return (int)(look_us / PR_MS) + 1;
}
