/* lib/http_listen.c -- from "127.0.0.1:9470" to a listening socket. Refuses names that must be looked up, and
 * an address off loopback without a token or an authority of clients. */
#include "lib/http_inner.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#define LISTEN_BACKLOG 128

static int is_loopback(const struct sockaddr *sa)
{
	const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)sa;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)sa;

	if (sa->sa_family == AF_INET)
		return ntohl(in->sin_addr.s_addr) >> 24 == 127;
	if (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr))
		return in6->sin6_addr.s6_addr[12] == 127;
	return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
}

static int bad_listen(const char *listen, const char *why, struct pr_err *err)
{
	(void)pr_fail(err, PR_REJECT, "cannot listen on \"%s\": %s", listen, why);
	if (err)
		err->exit = PR_EX_CONFIG;
	return pr_hint(err, "write it as \"127.0.0.1:9470\", \"[::1]:9470\" or \"*:9470\"");
}

/* "host:port" or "[v6]:port" -> host without brackets, and the port's digits (borrowed). */
static int split_listen(
	const char *listen, char *host, size_t size, const char **ret_port, struct pr_err *err)
{
	const char *colon = strrchr(listen, ':');
	int bracket = *listen == '[';
	size_t n, digits;

	if (!colon)
		return bad_listen(listen, "no port", err);
	digits = strspn(colon + 1, "0123456789");
	if (digits == 0 || digits > 5 || colon[1 + digits] != '\0' || atoi(colon + 1) > 65535)
		return bad_listen(listen, "the port is not a number from 0 to 65535", err);
	if (bracket && (colon - listen < 3 || colon[-1] != ']'))
		return bad_listen(listen, "no closing bracket before the port", err);
	n = (size_t)(colon - listen) - (bracket ? 2 : 0);
	if (n == 0 || n >= size)
		return bad_listen(listen, "no address before the port", err);
	if (!bracket && memchr(listen, ':', n))
		return bad_listen(listen, "an IPv6 address stands in brackets", err);
	memcpy(host, listen + bracket, n);
	host[n] = '\0';
	*ret_port = colon + 1;
	return 0;
}

/* Names are not looked up: a resolver may hang, and may answer with an address of its own choice. */
static int resolve(const char *listen, char *host, size_t size, struct addrinfo **ret, struct pr_err *err)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
		.ai_socktype = SOCK_STREAM };
	const char *port = "", *node;

	if (split_listen(listen, host, size, &port, err) < 0)
		return -1;
	node = strcmp(host, "*") == 0 ? "::" : strcasecmp(host, "localhost") == 0 ? "127.0.0.1" : host;
	if (getaddrinfo(node, port, &hints, ret) != 0)
		return bad_listen(listen, "not a numeric address", err);
	return 0;
}

static int listen_failed(const char *listen, struct pr_err *err)
{
	int no = errno;
	enum pr_kind kind = no == EADDRINUSE || no == EADDRNOTAVAIL || no == EMFILE || no == ENFILE
				    ? PR_RETRY
				    : PR_REJECT;

	(void)pr_fail(err, kind, "cannot listen on \"%s\": %s", listen, strerror(no));
	if (!err)
		return -1;
	(void)snprintf(err->code, sizeof(err->code), "%s", strerrorname_np(no) ? strerrorname_np(no) : "");
	if (no == EADDRINUSE)
		(void)pr_hint(err,
			"another process serves there (ss -ltnp shows it): stop it, or listen elsewhere");
	else if (no == EADDRNOTAVAIL)
		(void)pr_hint(err, "no interface of this host has that address now");
	else if (no == EACCES)
		(void)pr_hint(err, "ports below 1024 need CAP_NET_BIND_SERVICE: take a higher one");
	return -1;
}

static int bind_socket(int fd, const struct addrinfo *ai, int reuse_port)
{
	const int on = 1, off = 0;

	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0)
		return -1;
	if (reuse_port && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) < 0)
		return -1;
	/* "*" is [::] with IPv4 in it; an explicit [::] as well, whatever the sysctl says. */
	if (ai->ai_family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) < 0)
		return -1;
	return bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 ? -1 : listen(fd, LISTEN_BACKLOG);
}

static int open_socket(const struct pr_http_opts *opts, const struct addrinfo *ai, struct pr_err *err)
{
	int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return listen_failed(opts->listen, err);
	if (bind_socket(fd, ai, opts->reuse_port) < 0) {
		(void)listen_failed(opts->listen, err);
		(void)close(fd);
		return -1;
	}
	return fd;
}

/* A kernel without IPv6 refuses the socket of "*": IPv4 alone then. */
static int open_any(const struct pr_http_opts *opts, struct addrinfo *ai, struct pr_err *err)
{
	struct sockaddr_in in = { .sin_family = AF_INET };
	struct addrinfo v4 = {
		.ai_family = AF_INET, .ai_addr = (struct sockaddr *)&in, .ai_addrlen = sizeof(in)
	};
	int probe;

	if (*opts->listen != '*')
		return open_socket(opts, ai, err);
	probe = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (probe < 0) {
		in.sin_port = ((const struct sockaddr_in6 *)(const void *)ai->ai_addr)->sin6_port;
		return open_socket(opts, &v4, err);
	}
	(void)close(probe);
	return open_socket(opts, ai, err);
}

static int bound_port(int fd)
{
	struct sockaddr_storage ss;
	socklen_t len = sizeof(ss);

	if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0)
		return 0;
	return ntohs(ss.ss_family == AF_INET ? ((struct sockaddr_in *)&ss)->sin_port
					     : ((struct sockaddr_in6 *)&ss)->sin6_port);
}

int http_listen(struct pr_http *http, const struct pr_http_opts *opts, struct pr_err *err)
{
	struct addrinfo *ai = NULL;
	int fd;

	if (resolve(opts->listen, http->listen_host, sizeof(http->listen_host), &ai, err) < 0)
		return -1;
	http->loopback = is_loopback(ai->ai_addr);
	if (!http->loopback && !http->token && !opts->tls.client_ca && !opts->guarded) {
		freeaddrinfo(ai);
		(void)pr_fail(err, PR_REJECT,
			"refusing to listen on \"%s\" without a token or http.tls.client_ca", opts->listen);
		if (err)
			err->exit = PR_EX_CONFIG;
		return pr_hint(err, "set a bearer token or client certificates, or listen on 127.0.0.1");
	}
	fd = open_any(opts, ai, err);
	freeaddrinfo(ai);
	if (fd >= 0)
		http->port = bound_port(fd);
	return fd;
}
