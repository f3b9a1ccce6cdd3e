/* lib/conf_check.c -- brokers, properties, listening address and log level, for every daemon alike.
 * Contacts nothing and resolves no name. */
#include "lib/conf_check.h"

#include "lib/kafka.h"
#include "lib/log.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

int pr_check_brokers(const char *brokers, const struct pr_conf *conf, struct pr_err *err)
{
	for (const char *p = brokers; *p; p++)
		if (!isgraph((unsigned char)*p) && *p != ' ')
			return pr_conf_fail(conf, "kafka.brokers", err, "holds a character no address has");
	return 0;
}

int pr_check_properties(
	const struct pr_strs *properties, int consumer, const struct pr_conf *conf, struct pr_err *err)
{
	struct pr_err why;
	int rc = consumer ? pr_kafka_check_consumer_properties(properties, &why)
			  : pr_kafka_check_properties(properties, &why);

	if (rc == 0)
		return 0;
	(void)pr_conf_fail(conf, "kafka.properties", err, "%s", why.text);
	if (*why.hint)
		(void)pr_hint(err, "%s", why.hint);
	return -1;
}

/* "127.0.0.1:9470" -> the host without brackets; -1 when it is not host:port. */
static int split_listen(const char *listen, char *host, size_t size)
{
	const char *colon = strrchr(listen, ':'), *from = listen;
	size_t n = colon ? (size_t)(colon - listen) : 0, digits = colon ? strspn(colon + 1, "0123456789") : 0;

	if (digits == 0 || digits > 5 || colon[1 + digits] != '\0' || strtol(colon + 1, NULL, 10) > 65535)
		return -1;
	if (n >= 2 && *from == '[' && from[n - 1] == ']') {
		from++;
		n -= 2;
	} else if (memchr(from, ':', n)) {
		return -1;
	}
	if (n == 0 || n >= size)
		return -1;
	memcpy(host, from, n);
	host[n] = '\0';
	return 0;
}

static int is_loopback(const char *host)
{
	struct in6_addr v6;
	struct in_addr v4;

	if (inet_pton(AF_INET, host, &v4) == 1)
		return ntohl(v4.s_addr) >> 24 == 127;
	if (inet_pton(AF_INET6, host, &v6) == 1)
		return IN6_IS_ADDR_LOOPBACK(&v6);
	return strcasecmp(host, "localhost") == 0;
}

static int check_tls(const struct pr_http_tls *tls, const struct pr_conf *conf, struct pr_err *err)
{
	if (!tls->cert != !tls->key)
		return pr_conf_fail(conf, tls->cert ? "http.tls.cert" : "http.tls.key", err,
			"needs %s beside it", tls->cert ? "http.tls.key" : "http.tls.cert");
	if (tls->client_ca && !tls->cert)
		return pr_conf_fail(conf, "http.tls.client_ca", err, "needs http.tls.cert and http.tls.key");
	return 0;
}

int pr_check_listen(const char *listen, const char *token, const struct pr_http_tls *tls,
	const struct pr_conf *conf, struct pr_err *err)
{
	char host[256];

	if (split_listen(listen, host, sizeof(host)) < 0) {
		(void)pr_conf_fail(conf, "http.listen", err, "is not address:port");
		return pr_hint(err, "like 127.0.0.1:9470, [::1]:9470 or *:9470");
	}
	if (tls && check_tls(tls, conf, err) < 0)
		return -1;
	if (is_loopback(host) || token || (tls && tls->client_ca))
		return 0;
	(void)pr_conf_fail(conf, "http.listen", err, "needs http.token to listen off loopback");
	return pr_hint(err, "set http.token to \"env:NAME\" or \"file:/path\"%s",
		tls ? ", or http.tls.client_ca" : "");
}

int pr_check_file(const char *key, const char *path, int mode, const struct pr_conf *conf, struct pr_err *err)
{
	if (access(path, mode) == 0)
		return 0;
	return pr_conf_fail(conf, key, err, "\"%.150s\": %s", path, strerror(errno));
}

char *pr_find_program(const char *name)
{
	const char *path = getenv("PATH"), *end;

	if (strchr(name, '/'))
		return access(name, X_OK) == 0 ? pr_strdup(name) : NULL;
	for (path = path ? path : "/usr/bin:/bin"; path; path = *end ? end + 1 : NULL) {
		char *full;

		end = strchrnul(path, ':');
		full = pr_asprintf("%.*s/%s", (int)(end - path), path, name);
		if (end > path && access(full, X_OK) == 0)
			return full;
		free(full);
	}
	return NULL;
}

int pr_check_log_level(const char *text, const struct pr_conf *conf, struct pr_err *err)
{
	enum pr_level level;

	if (pr_level_parse(text, &level) < 0)
		return pr_conf_fail(conf, "log.level", err, "must be debug, info, warn or error");
	return 0;
}
