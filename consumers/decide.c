/* consumers/decide.c -- what a failure means: class -> rule -> verdict, and the breaker. Refuses to bury what
 * a dead downstream refused: then nothing moves until one message has got through. */
#include "consumers/topics.h"

#include "lib/clock.h"
#include "lib/log.h"
#include "lib/rights.h"

#include <string.h>

#define RETRY_US     (200 * PR_MS) /* first delay of a rule that says none */
#define RETRY_MAX_US (60 * PR_SEC)
#define FULL_US      PR_SEC /* whether a key may be parked again */
#define PROBES       10     /* with one message; then its key is parked, and another is the probe */

const struct pr_rule *rule_of(const struct lane *l, const struct outcome *why)
{
	return pr_consumer_rule(l->c->conf, why->cls, why->code);
}

int64_t delay_of(const struct pr_rule *rule, const struct message *m, const struct outcome *why)
{
	int64_t base = rule->backoff_us > 0 ? rule->backoff_us : RETRY_US;
	int64_t most = rule->backoff_max_us > 0 ? rule->backoff_max_us : RETRY_MAX_US;
	int64_t delay = pr_backoff_us(m->attempts > 0 ? m->attempts - 1 : 0, base, most);

	return delay > why->retry_after_us ? delay : why->retry_after_us;
}

static void stop(struct lane *l, const struct message *m, const struct outcome *why)
{
	struct pr_err err;

	(void)pr_fail(&err, PR_STOP, "%s[%d] offset %lld: %s", m->topic, (int)m->partition,
		(long long)m->offset, why->text);
	(void)snprintf(err.code, sizeof(err.code), "%s", why->code);
	(void)pr_hint(&err, "the rule for %s%s%s says stop", pr_fail_class_str(why->cls),
		why->code[0] ? ":" : "", why->code);
	err.exit = PR_EX_FAILED;
	health_trouble(l->c, TROUBLE_REFUSED, &err);
	consumer_stop(l->c, PR_EX_FAILED);
}

int may_park(struct lane *l)
{
	struct pr_err err;

	if (l->c->topics)
		return l->c->topics->stages > 0;
	if (atomic_load(&l->c->parked_keys) < (uint64_t)pr_setting(&l->c->conf->limits.parked_keys))
		return 1;
	(void)pr_fail(&err, PR_RETRY, "%lld keys are parked, the most that limits.parked_keys allows",
		(long long)pr_setting(&l->c->conf->limits.parked_keys));
	(void)pr_hint(&err, "mend what they fail of and release them, or raise the limit");
	health_trouble(l->c, TROUBLE_PARKED, &err);
	return 0;
}

/* m->attempts counts the try that has just failed. */
void decide(struct lane *l, struct message *m, const struct outcome *why, struct verdict *ret)
{
	const struct pr_rule *rule = rule_of(l, why);
	int used_up = rule->attempts > 0 && m->attempts >= (unsigned)rule->attempts, probed;

	message_failed(m, why);
	*ret = (struct verdict){ .fate = FATE_PENDING, .delay_us = delay_of(rule, m, why) };
	switch ((enum pr_policy)rule->policy) {
	case PR_POLICY_RETRY:
		if (used_up)
			ret->fate = FATE_BURY;
		break;
	case PR_POLICY_BREAKER:
		if (m->suspect) { /* known to fail so: it says nothing about the others */
			ret->fate = FATE_PARK;
			break;
		}
		probed = l->probing;
		breaker_open(l, why, why->retry_after_us);
		m->attempts -= m->attempts > 0; /* it is not the message that failed */
		ret->delay_us = 0;              /* the breaker's probe decides when */
		if (probed && !m->parked && atomic_load(&l->c->breaker_failures) % PROBES == 0 &&
			may_park(l)) {
			ret->fate = FATE_PARK; /* or is it? Another one shall tell */
			ret->delay_us = rule->backoff_max_us > 0 ? rule->backoff_max_us : RETRY_MAX_US;
		}
		break;
	case PR_POLICY_PARK:
		if (l->c->topics) /* a try for each retry topic; the last one again and again if for ever */
			used_up = topics_last(l->c, m) && (rule->attempts > 0 || l->c->topics->stages == 0);
		ret->fate = used_up ? FATE_BURY : m->parked || may_park(l) ? FATE_PARK : FATE_PENDING;
		if (ret->fate == FATE_PENDING && ret->delay_us > FULL_US)
			ret->delay_us = FULL_US;
		break;
	case PR_POLICY_DEAD_LETTER:
		ret->fate = FATE_BURY;
		break;
	case PR_POLICY_IGNORE:
		ret->fate = FATE_IGNORE;
		break;
	case PR_POLICY_STOP:
		stop(l, m, why);
		break;
	}
	ret->undo = ret->fate == FATE_BURY && why->cls != PR_FAIL_DECODE;
}

/* ---------------------------------------------------------------- the breaker: one for all lanes */

void breaker_open(struct lane *l, const struct outcome *why, int64_t retry_after_us)
{
	struct consumer *c = l->c;
	const struct pr_rule *rule = rule_of(l, why);
	int64_t most = rule->backoff_max_us > 0 ? rule->backoff_max_us : RETRY_MAX_US, delay;
	char mend[300] = "";
	struct pr_err err;

	if (!l->probing && atomic_load(&c->breaker_probe_us))
		return; /* open already: what was under way has failed too */
	delay = pr_backoff_us(atomic_fetch_add(&c->breaker_failures, 1),
		rule->backoff_us > 0 ? rule->backoff_us : RETRY_US, most);
	if (delay < retry_after_us)
		delay = retry_after_us;
	atomic_store(&c->breaker_probe_us, pr_mono_us() + delay);
	if (l->probing)
		atomic_store(&c->breaker_taken, 0);
	l->probing = 0;
	(void)pr_fail(&err, PR_RETRY, "%s", why->text);
	(void)snprintf(err.code, sizeof(err.code), "%s%s%s", pr_fail_class_str(why->cls),
		why->code[0] ? ":" : "", why->code);
	if (why->cls == PR_FAIL_SQLSTATE)
		pr_rights_hint(
			why->code, why->text, l->pg ? PQuser(pr_pg_conn(l->pg)) : NULL, mend, sizeof(mend));
	(void)pr_hint(&err, "%s%snothing is handled until one message gets through", mend, *mend ? "; " : "");
	health_trouble(c, TROUBLE_HANDLER, &err);
}

void breaker_close(struct lane *l)
{
	struct consumer *c = l->c;

	if (!l->probing)
		return; /* only the probe knows */
	l->probing = 0;
	atomic_store(&c->breaker_failures, 0);
	atomic_store(&c->breaker_probe_us, 0);
	atomic_store(&c->breaker_taken, 0);
	health_trouble(c, TROUBLE_HANDLER, NULL);
}

void breaker_release(struct lane *l)
{
	if (!l->probing)
		return;
	l->probing = 0;
	atomic_store(&l->c->breaker_taken, 0);
}

int breaker_lets_go(struct lane *l, int64_t *ret_wait_us)
{
	int64_t probe = atomic_load(&l->c->breaker_probe_us), wait = probe - pr_mono_us();

	*ret_wait_us = 0;
	if (probe == 0 || l->probing)
		return 1;
	*ret_wait_us = wait > 10 * PR_MS ? wait : 10 * PR_MS;
	if (wait > 0 || atomic_exchange(&l->c->breaker_taken, 1))
		return 0;
	l->probing = 1;
	return 1;
}
