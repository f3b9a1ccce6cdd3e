/* lib/conf_check.h -- checks that several programs' configurations share. Each names the option at fault
 * by pr_conf_fail, and contacts nothing. */
#ifndef PR_CONF_CHECK_H
#define PR_CONF_CHECK_H

#include "lib/conf.h"
#include "lib/http.h"

/* kafka.brokers: no character that no address has. */
int pr_check_brokers(const char *brokers, const struct pr_conf *conf, struct pr_err *err) PR_MUSTCHECK;

/* kafka.properties: librdkafka takes them, and the guarantee allows them. consumer: what a consumer fixes is
 * refused too. */
int pr_check_properties(const struct pr_strs *properties, int consumer, const struct pr_conf *conf,
	struct pr_err *err) PR_MUSTCHECK;

/* http.listen is address:port, and needs http.token or http.tls.client_ca off loopback; of http.tls the files
 * go together. */
int pr_check_listen(const char *listen, const char *token, const struct pr_http_tls *tls,
	const struct pr_conf *conf, struct pr_err *err) PR_MUSTCHECK;

/* A file that will be run, loaded or read at the start is there and may be. mode as access() has it. */
int pr_check_file(const char *key, const char *path, int mode, const struct pr_conf *conf,
	struct pr_err *err) PR_MUSTCHECK;

/* The file that a program's name stands for, as a shell finds it by PATH; NULL: there is none, or it may not
 * be run. The caller frees it. */
char *pr_find_program(const char *name);

/* log.level is one. */
int pr_check_log_level(const char *level, const struct pr_conf *conf, struct pr_err *err) PR_MUSTCHECK;

#endif
