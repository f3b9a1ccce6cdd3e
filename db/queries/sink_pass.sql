DELETE FROM sink.cut
WHERE group_name = $1 AND topic = $2 AND partition = $3 AND first_offset = $4 AND state <> 'published'
