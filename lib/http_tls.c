/* lib/http_tls.c -- TLS of the server: its certificate, and whose clients may come in. Refuses a key that
 * others may read, and, with an authority of clients, whoever shows no certificate of it: before a request is
 * read.
 *
 * libmicrohttpd asks for a client's certificate and then takes any. So each session gets credentials of ours
 * before its handshake, and GnuTLS's own verification; that is also how renewed files come in without a
 * restart. */
#include "lib/http_inner.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* One reading of the files. Sessions may use it as long as they live: it is kept until the server ends. */
struct certs {
	struct certs *older;
	gnutls_certificate_credentials_t x;
};

struct tls {
	char *cert, *key, *client_ca;
	pthread_mutex_t mutex; /* of certs */
	struct certs *certs;
};

static int refuse(struct pr_err *err, const char *what, const char *path, const char *why)
{
	(void)pr_fail(err, PR_REJECT, "%s \"%s\": %s", what, path, why);
	if (err)
		err->exit = PR_EX_CONFIG;
	return -1;
}

static int check_key(const char *path, struct pr_err *err)
{
	struct stat st;

	if (stat(path, &st) < 0)
		return refuse(err, "http.tls.key", path, strerror(errno));
	if (!(st.st_mode & S_IRWXO))
		return 0;
	(void)refuse(err, "http.tls.key", path, "other users may read it");
	return pr_hint(err, "chmod o= %s", path);
}

static int read_files(const struct tls *tls, gnutls_certificate_credentials_t x, struct pr_err *err)
{
	int rc;

	if (check_key(tls->key, err) < 0)
		return -1;
	rc = gnutls_certificate_set_x509_key_file(x, tls->cert, tls->key, GNUTLS_X509_FMT_PEM);
	if (rc < 0)
		return refuse(err, "http.tls.cert and its key", tls->cert, gnutls_strerror(rc));
	if (!tls->client_ca)
		return 0;
	rc = gnutls_certificate_set_x509_trust_file(x, tls->client_ca, GNUTLS_X509_FMT_PEM);
	if (rc > 0)
		return 0;
	return refuse(err, "http.tls.client_ca", tls->client_ca,
		rc < 0 ? gnutls_strerror(rc) : "no certificate is in it");
}

int http_tls_load(struct tls *tls, struct pr_err *err)
{
	struct certs *fresh = pr_calloc(1, sizeof(*fresh));

	if (gnutls_certificate_allocate_credentials(&fresh->x) < 0) {
		free(fresh);
		return pr_fail(err, PR_RETRY, "no memory for certificates");
	}
	if (read_files(tls, fresh->x, err) < 0) {
		gnutls_certificate_free_credentials(fresh->x);
		free(fresh);
		return -1;
	}
	(void)pthread_mutex_lock(&tls->mutex);
	fresh->older = tls->certs;
	tls->certs = fresh;
	(void)pthread_mutex_unlock(&tls->mutex);
	return 0;
}

struct tls *http_tls_new(const struct pr_http_tls *opts, struct pr_err *err)
{
	struct tls *tls;

	if (MHD_is_feature_supported(MHD_FEATURE_TLS) != MHD_YES) {
		(void)pr_fail(err, PR_STOP, "http.tls: this libmicrohttpd was built without TLS");
		return NULL;
	}
	tls = pr_calloc(1, sizeof(*tls));
	(void)pthread_mutex_init(&tls->mutex, NULL);
	tls->cert = pr_strdup(opts->cert);
	tls->key = pr_strdup(opts->key);
	tls->client_ca = opts->client_ca ? pr_strdup(opts->client_ca) : NULL;
	if (http_tls_load(tls, err) == 0)
		return tls;
	http_tls_free(tls);
	return NULL;
}

void http_tls_free(struct tls *tls)
{
	struct certs *older;

	if (!tls)
		return;
	for (struct certs *c = tls->certs; c; c = older) {
		older = c->older;
		gnutls_certificate_free_credentials(c->x);
		free(c);
	}
	(void)pthread_mutex_destroy(&tls->mutex);
	free(tls->cert);
	free(tls->key);
	free(tls->client_ca);
	free(tls);
}

/* libmicrohttpd wants a pair of its own, or it begins no session. */
int http_tls_pair(const struct tls *tls, char **cert, char **key)
{
	gnutls_datum_t c = { 0 }, k = { 0 };

	*cert = *key = NULL;
	if (gnutls_load_file(tls->cert, &c) == 0 && gnutls_load_file(tls->key, &k) == 0) {
		*cert = pr_asprintf("%.*s", (int)c.size, (const char *)c.data);
		*key = pr_asprintf("%.*s", (int)k.size, (const char *)k.data);
	}
	gnutls_free(c.data);
	if (k.data)
		explicit_bzero(k.data, k.size);
	gnutls_free(k.data);
	return *cert ? 0 : -1;
}

static gnutls_session_t session_of(struct MHD_Connection *conn)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(conn, MHD_CONNECTION_INFO_GNUTLS_SESSION);

	return info ? info->tls_session : NULL;
}

int http_tls_begin(struct tls *tls, struct MHD_Connection *conn)
{
	gnutls_session_t session = session_of(conn);
	gnutls_certificate_credentials_t x;

	(void)pthread_mutex_lock(&tls->mutex);
	x = tls->certs->x;
	(void)pthread_mutex_unlock(&tls->mutex);
	if (!session || gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, x) < 0)
		return -1;
	if (tls->client_ca) {
		gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUIRE);
		gnutls_session_set_verify_cert(session, NULL, 0);
	}
	return 0;
}

void http_tls_send(struct MHD_Connection *conn, const char *text, size_t n)
{
	(void)gnutls_record_send(session_of(conn), text, n);
}
