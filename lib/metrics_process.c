/* lib/metrics_process.c -- what /proc tells of this process, read at each scrape. What cannot be read is NaN.
 */
#include "lib/metrics_inner.h"

#include "lib/clock.h"
#include "lib/err.h"

#include <assert.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* The first bytes of a /proc file, "" when it cannot be read. */
static const char *slurp(const char *path, char *buf, size_t size)
{
	FILE *f = fopen(path, "re");
	size_t n = 0;

	if (f) {
		n = fread(buf, 1, size - 1, f);
		(void)fclose(f);
	}
	buf[n] = '\0';
	return buf;
}

/* Field n (from 1) of /proc/self/stat, counted after the command's name, which may hold anything. */
static double stat_field(int n)
{
	char buf[1024];
	const char *p = strrchr(slurp("/proc/self/stat", buf, sizeof(buf)), ')');

	for (int i = 2; p && i < n; i++)
		p = strchr(p + 1, ' ');
	return p ? strtod(p + 1, NULL) : NAN;
}

static double start_time(void)
{
	struct timespec boot = { 0 };

	/* Field 22 counts clock ticks since the boot. */
	if (clock_gettime(CLOCK_BOOTTIME, &boot) < 0)
		return NAN;
	return (double)pr_wall_us() / 1e6 - ((double)boot.tv_sec + (double)boot.tv_nsec / 1e9) +
	       stat_field(22) / (double)sysconf(_SC_CLK_TCK);
}

static double resident_bytes(void)
{
	char buf[256];
	const char *p = strchr(slurp("/proc/self/statm", buf, sizeof(buf)), ' ');

	return p ? strtod(p + 1, NULL) * (double)sysconf(_SC_PAGESIZE) : NAN;
}

static double open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	const struct dirent *e;
	double n = -1; /* the directory's own */

	if (!dir)
		return NAN;
	while ((e = readdir(dir)))
		n += e->d_name[0] != '.';
	(void)closedir(dir);
	return n;
}

static double max_fds(void)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim) < 0)
		return NAN;
	return lim.rlim_cur == RLIM_INFINITY ? INFINITY : (double)lim.rlim_cur;
}

void metrics_process_read(const struct process *p)
{
	struct timespec cpu = { 0 };

	(void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
	metrics_set_real(p->cpu, (double)cpu.tv_sec + (double)cpu.tv_nsec / 1e9);
	metrics_set_real(p->resident, resident_bytes());
	metrics_set_real(p->fds, open_fds());
	metrics_set_real(p->max_fds, max_fds());
	metrics_set_real(p->threads, stat_field(20));
}

static struct pr_series *process_gauge(struct pr_metrics *m, const char *name, const char *help)
{
	return pr_series_one(pr_family_new(m, PR_GAUGE, name, "", 0, help));
}

void pr_metrics_process(struct pr_metrics *m)
{
	struct process *p = pr_calloc(1, sizeof(*p));

	assert(!atomic_load(&m->process));
	p->cpu = pr_series_one(metrics_family_make(m, PR_COUNTER, "process_cpu_seconds_total", "", 0,
		"Total user and system CPU time spent in seconds.", NULL, 0, 1));
	p->resident = process_gauge(m, "process_resident_memory_bytes", "Resident memory size in bytes.");
	p->fds = process_gauge(m, "process_open_fds", "Number of open file descriptors.");
	p->max_fds = process_gauge(m, "process_max_fds", "Maximum number of open file descriptors.");
	p->start = process_gauge(
		m, "process_start_time_seconds", "Start time of the process since unix epoch in seconds.");
	p->threads = process_gauge(m, "process_threads", "Number of threads of the process.");
	metrics_set_real(p->start, start_time());
	atomic_store_explicit(&m->process, p, memory_order_release);
}
