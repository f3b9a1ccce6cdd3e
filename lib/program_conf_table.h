/* lib/program_conf_table.h -- what the tables of options of relay and consumer have in common: HTTP, the
 * page, tracing, the log. Included into each where it stands (lib/relay_conf.c, lib/consumer_conf.c), which
 * says what AT(field), PORT and PROGRAM are. */
#ifdef PR_PROGRAM_OPTIONS_HERE
{ "http.listen", PR_OPT_STR, AT(http.listen), "127.0.0.1:" PORT, .flags = PR_OPT_NO_RELOAD,
	.doc = "Address and port of health, metrics and status: 127.0.0.1:" PORT ", [::1]:" PORT " or *:" PORT
	       "; port 0 takes a free one. Off loopback it needs http.token or http.tls.client_ca." },
	{ "http.token", PR_OPT_SECRET, AT(http.token), .flags = PR_OPT_NO_RELOAD,
		.example = "env:POSTRIDER_TOKEN", .doc = "Bearer token that HTTP clients must show." },
	{ "http.tls.cert", PR_OPT_STR, AT(http.tls.cert), .flags = PR_OPT_NO_RELOAD,
		.example = "/etc/postrider/tls/server.crt",
		.doc = "File with the certificate, PEM, the chain behind it: HTTP is HTTPS then. SIGHUP "
		       "reads the files anew." },
	{ "http.tls.key", PR_OPT_STR, AT(http.tls.key), .flags = PR_OPT_NO_RELOAD,
		.example = "/etc/postrider/tls/server.key",
		.doc = "File with its key, PEM; other users may not read it." },
	{ "http.tls.client_ca", PR_OPT_STR, AT(http.tls.client_ca), .flags = PR_OPT_NO_RELOAD,
		.example = "/etc/postrider/tls/clients-ca.crt",
		.doc = "File with the authority of clients, PEM: who shows no certificate of it is refused, "
		       "for every path. Off loopback it may stand instead of http.token; with both, both are "
		       "wanted." },
	{ "environment.name", PR_OPT_STR, AT(environment.name), .flags = PR_OPT_NO_RELOAD,
		.example = "production",
		.doc = "Where this runs, shown at the top of the status page so that nobody takes one "
		       "environment for another." },
	{ "environment.colour", PR_OPT_ENUM, AT(environment.colour), "none", .choices = PR_PAGE_COLOURS,
		.flags = PR_OPT_NO_RELOAD, .doc = "The colour of that name and of the page's upper edge." },
	{ "tracing.endpoint", PR_OPT_STR, AT(tracing.endpoint), .flags = PR_OPT_NO_RELOAD,
		.example = "http://127.0.0.1:4318/v1/traces",
		.doc = "Where spans are posted as OTLP/HTTP JSON: the whole URL. Not set: no spans." },
	{ "tracing.service", PR_OPT_STR, AT(tracing.service), PROGRAM, .flags = PR_OPT_NO_RELOAD,
		.doc = "What the spans have as service.name." },
	{ "tracing.headers", PR_OPT_STRS, AT(tracing.headers), .flags = PR_OPT_NO_RELOAD,
		.example = "Authorization: env:COLLECTOR_TOKEN",
		.doc = "Further headers of that request, \"Name: value\" each. Secret ones may be "
		       "\"Authorization: env:NAME\" or \"Authorization: file:/path\"." },
	{ "tracing.sample", PR_OPT_RATIO, AT(tracing.sample), "1.0", .flags = PR_OPT_NO_RELOAD,
		.doc = "Part of the events without a traceparent that are traced, chosen by their "
		       "id: relay and consumers with the same number choose the same. An event "
		       "with one is traced when that says sampled." },
	{ "tracing.queue", PR_OPT_INT, AT(tracing.queue), "4096", .min = 16, .max = 1000000,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Most spans that wait for the collector, about 600 bytes each; more are "
		       "dropped and counted." },
	{ "tracing.timeout", PR_OPT_DURATION, AT(tracing.timeout_us), "5s", .min = 100 * PR_MS,
		.max = 30 * PR_SEC, .flags = PR_OPT_NO_RELOAD,
		.doc = "Deadline of one such request, and of sending what waits when the program "
		       "ends." },
	{ "history.every", PR_OPT_DURATION, AT(history_us), "10s", .min = 10 * PR_MS, .max = 10 * PR_SEC,
		.flags = PR_OPT_NO_RELOAD | PR_OPT_HIDDEN,
		.doc = "How often the numbers of /history.json are taken; the last 360 are kept." },
	{ "log.level", PR_OPT_STR, AT(log_level), "info",
		.doc = "Least level of log lines: debug, info, warn or error." },
#endif
