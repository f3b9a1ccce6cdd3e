UPDATE sink.cut SET state = 'refused', code = $5, answer = $6
WHERE group_name = $1 AND topic = $2 AND partition = $3 AND first_offset = $4
