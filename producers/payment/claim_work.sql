SELECT w.id, w.kind, w.attempts, w.payment_id, w.user_id, w.amount, w.receipt_no
FROM payment.claim_work($1, $2::bigint * interval '1 microsecond') AS w
