/* producers/concert/page.h -- the box office, a page that postrider-concert serves at "/": it uses the
 * services from a browser, as any client would. */
#ifndef PR_CONCERT_PAGE_H
#define PR_CONCERT_PAGE_H

#include "lib/conf.h"
#include "lib/service.h"

/* Where a browser finds the services; the page's own is this one. */
struct page_conf {
	char *user, *queue, *reservation, *payment, *order, *push;
};

#define PAGE_OPTION(type, field, word, port)                                                                 \
	{                                                                                                    \
		"page." #word, PR_OPT_STR, offsetof(type, field.word), "http://127.0.0.1:" port,             \
			.flags = PR_OPT_NO_RELOAD,                                                           \
			.doc = "Where the box office, a page in a browser, finds the " #word                 \
			       " service; that one's http.origins must name this service's address."         \
	}

/* For the table of options; field: its struct page_conf in type. */
#define PAGE_OPTIONS(type, field)                                                                            \
	PAGE_OPTION(type, field, user, "8081"), PAGE_OPTION(type, field, queue, "8083"),                     \
		PAGE_OPTION(type, field, reservation, "8084"), PAGE_OPTION(type, field, payment, "8085"),    \
		PAGE_OPTION(type, field, order, "8086"), PAGE_OPTION(type, field, push, "8087")

/* For the table of endpoints. */
#define PAGE_ENDPOINTS                                                                                       \
	{ "GET", "/", .flags = PR_PLAIN, .before = page_show },                                              \
	{                                                                                                    \
		"GET", "/config.json", .flags = PR_PLAIN, .before = page_config                              \
	}

/* Once, in begin; conf is borrowed. -1: an address is none of http. */
int page_begin(const struct page_conf *conf, struct pr_err *err) PR_MUSTCHECK;
void page_end(void);
int page_show(struct pr_call *call);
int page_config(struct pr_call *call);

#endif
