SELECT EXISTS (SELECT FROM sink.cut WHERE group_name = $1), (SELECT max(path) FROM sink.file WHERE group_name = $1)
