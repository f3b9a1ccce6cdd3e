"""bench/platform_away.py -- the main flow does not wait for the data platform: the same payments by the orchestrated saga, asked for
at a steady rate while the platform is up, while it is down, and in turns again. A payment's time is the database's: from
the row that the request writes to the state COMPLETED. Refuses payments that did not end well, and to end before the
platform, back again, has every fact that it missed."""
import flash
import lab as L
from measures import Result, in_turns, median
from stack import Stack

PAYMENTS, RATE = 200, 20
SLOW = "extract(epoch FROM percentile_cont(%s) WITHIN GROUP (ORDER BY completed_at - created_at)) * 1000"


class Payments(flash.Sale):
    """Each user holds a seat and has the money for it."""

    def hold(self):
        lines = [("POST", "/reservations", t, {"schedule_id": self.schedule, "seat_ids": [s], "queue_token": p})
                 for t, p, s in zip(self.tokens, self.places, self.seats)]
        self.ask("reservation", lines, (202,))
        self.stack.settle(300, but=("live_sagas",))
        self.holders = self.held()
        self.charge(self.holders)

    def run(self, n=PAYMENTS):
        """n payments at RATE a second; the request's time and the payment's, ms."""
        now, self.holders = self.holders[:n], self.holders[n:]
        ids, r = self.try_to_pay(now, RATE)
        p50, p99, n = self.stack.db("payment").query(f"SELECT {SLOW % 0.5}, {SLOW % 0.99}, count(*) FROM payment.payment"
                               " WHERE state = 'COMPLETED' AND payment_id::text = ANY (%s)", (ids,))[0]
        if n != len(ids):
            raise L.Failed(f"{n} of {len(ids)} payments are completed")
        return {"answer_p99_ms": r["p99_ms"], "p50_ms": float(p50), "p99_ms": float(p99)}

    def run_without(self):
        self.stack.kill("platform")
        r = self.run()
        self.stack.restart("platform")
        self.stack.settle(300)  # the facts that waited: they are not the next run's
        return r


def platform(lab, opt):
    """Payments with the data platform down beside payments with it up."""
    flash.USERS = flash.SEATS = PAYMENTS * (2 * opt.rounds + 1)
    # A broker of its own: another measure's events would be facts to tell.
    with Stack(options=flash.OPTIONS, without=("platform-sink",), variant="plain", servers_config={"shared_buffers": "256MB"}) as stack:
        p = Payments(lab, stack)
        p.come()
        p.hold()
        p.run()  # the first ones pay for what is not in any cache yet
        down, up = in_turns(opt.rounds, p.run_without, p.run)
        stack.settle(300)
        facts = stack.db("platform").one("SELECT count(*) FROM platform.fact WHERE type = 'PaymentCompleted'")
        if facts != flash.USERS:
            raise L.Failed(f"the platform has {facts} facts of {flash.USERS} payments")
    for key, what in (("p99_ms", "p99 of a payment, platform down"), ("p50_ms", "p50"), ("answer_p99_ms", "p99 of the request's answer")):
        value, base = (median([r[key] for r in runs]) for runs in (down, up))
        yield Result("platform", f"{what}, {RATE}/s", "ms", value, "platform up", base, ("ratio", "<=", 1.25) if key == "p99_ms" else None,
                     {"down": down, "up": up} if key == "p99_ms" else None)


MEASURES = {"platform": platform}
