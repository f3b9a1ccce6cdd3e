/* lib/sink_conf_table.h -- the sink's part of the consumer's table of options, included into it where it
 * stands (lib/consumer_conf.c), for the sake of its length. */
#ifdef PR_SINK_OPTIONS_HERE
{ "handler.catalogue", PR_OPT_BOOL, AT(sink.catalogue), "true", .flags = PR_OPT_NO_RELOAD,
	.doc = "Of sink: whether the shape of payloads is recorded (paths, kinds, what looks like "
	       "personal data), and what changes in it is told: postrider catalogue." },
	{ "handler.fields", PR_OPT_GROUPS, AT(sink.fields), .flags = PR_OPT_NO_RELOAD,
		.sub = pr_sink_field_options, .sub_size = sizeof(struct pr_sink_field),
		.doc = "Of sink: what is left out, renamed or masked on the way. With a \"keep\", of the "
		       "payload (or of "
		       "the headers) only what is kept, hashed, redacted or renamed stays; drop wins over "
		       "all. A "
		       "place that a record does not have is passed over; one that has another form hides "
		       "nothing less: a member's rule holds for each object of an array, and where something "
		       "is to be hidden and cannot be looked for (text instead of an object, an object "
		       "instead "
		       "of an array) null is left. null stays null, numbers keep their "
		       "digits." },
	{ "handler.hash_key", PR_OPT_SECRET, AT(sink.hash_key), .flags = PR_OPT_NO_RELOAD,
		.example = "env:SINK_HASH_KEY",
		.doc = "Of sink: key of action \"hash\" (HMAC-SHA256): the same value gives the same text, "
		       "and only who has the key can tell which." },
	{ "handler.unparsable", PR_OPT_ENUM, AT(sink.unparsable), "drop", .choices = "keep|drop",
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: a payload that handler.fields is about and cannot look into (no JSON, or "
		       "nothing "
		       "but text or a number): drop passes the record on without it, as an empty "
		       "payload_base64 and no tombstone, and counts it in postrider_sink_withheld_total; "
		       "into a "
		       "table of mode upsert or scd2 it does not go, it is a dead letter. keep passes the "
		       "payload "
		       "on as it is." },
	{ "handler.files.directory", PR_OPT_STR, AT(sink.files.directory), .flags = PR_OPT_NO_RELOAD,
		.example = "/var/lib/postrider/sink",
		.doc = "Of sink: files are written below it, "
		       "TOPIC/dt=YYYY-MM-DD/hour=HH/PARTITION-FIRST-LAST.ndjson (hours in UTC, of the "
		       "records' time; offsets of the first and the last record). A file with such a name "
		       "is complete and never changes; unfinished ones begin with a dot. It is one group's: "
		       "_manifest/owner names it, and another one's start is refused. So is that of a group "
		       "that has published and finds nothing of it here: another place, another group." },
	{ "handler.files.format", PR_OPT_ENUM, AT(sink.files.format.format), "ndjson",
		.choices = "ndjson|avro|parquet", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: what is in them." },
	{ "handler.files.compression", PR_OPT_ENUM, AT(sink.files.format.compression), "none",
		.choices = "none|gzip|zstd", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: ndjson is compressed as a whole (.ndjson.gz, .ndjson.zst), avro and parquet "
		       "within (avro: gzip is deflate)." },
	{ "handler.files.level", PR_OPT_INT, AT(sink.files.format.level), "1", .min = 1, .max = 19,
		.flags = PR_OPT_NO_RELOAD, .doc = "Of sink: how hard it is compressed; gzip has 1 to 9." },
	{ "handler.files.row_group", PR_OPT_INT, AT(sink.files.format.row_group), "10000", .min = 1,
		.max = 1000000, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: most records of a row group of parquet, of a block of avro." },
	{ "handler.files.parquet_library", PR_OPT_STR, AT(sink.files.format.parquet_library),
		.flags = PR_OPT_NO_RELOAD, .example = "/usr/lib/postrider/libduckdb.so",
		.doc = "Of sink: DuckDB's library (libduckdb.so), which writes parquet. When not set: where "
		       "the "
		       "system finds it." },
	{ "handler.files.max_records", PR_OPT_INT, AT(sink.files.cut.max_records), "100000", .min = 1,
		.max = 100000000, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: a partition's files get their names once they hold so many records." },
	{ "handler.files.max_bytes", PR_OPT_SIZE, AT(sink.files.cut.max_bytes), "64MB", .min = KB,
		.max = 1024 * 1024 * MB, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: or once they are so large, before compression." },
	{ "handler.files.max_age", PR_OPT_DURATION, AT(sink.files.cut.max_age_us), "60s", .min = 10 * PR_MS,
		.max = 7 * DAY, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: or so long after the first record came in." },
	{ "handler.files.keep", PR_OPT_DURATION, AT(sink.files.cut.keep_us), "90d", .min = PR_SEC,
		.max = 3650 * DAY, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: how long the database knows which files there are, from when they were "
		       "published "
		       "and at least until their hours are as old and complete. After that postrider "
		       "reconcile "
		       "cannot tell whether they are as they were, and records that come by again stop the "
		       "partition until somebody says what is to be done." },
	{ "handler.files.open_files", PR_OPT_INT, AT(sink.files.open_files), "500", .min = 1, .max = 100000,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: most files open at a time; of more, those written to longest ago are closed "
		       "meanwhile. What waits for its chunk and finds no room in memory waits below TMPDIR "
		       "(/var/tmp): the file is the same in the end." },
	{ "handler.files.late", PR_OPT_ENUM, AT(sink.files.late.policy), "keep",
		.choices = "keep|side|reject", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: what becomes of a record whose hour is over (handler.files.late_after "
		       "behind "
		       "the youngest one of its partition): keep writes it into its hour, side into "
		       "TOPIC/late/, reject makes it a dead letter." },
	{ "handler.files.late_after", PR_OPT_DURATION, AT(sink.files.late.after_us), "0s", .max = 365 * DAY,
		.flags = PR_OPT_NO_RELOAD, .doc = "Of sink: an hour is over so long after its end." },
	{ "handler.files.manifest", PR_OPT_BOOL, AT(sink.files.manifest), "true", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: whether _manifest/TOPIC/dt=YYYY-MM-DD/hour=HH.json tells each hour's files, "
		       "with their records, offsets, bytes, checksums, and whether it is complete: all "
		       "partitions of "
		       "the topic are past its end and late_after, idle ones by what Kafka says of their "
		       "ends." },
	{ "handler.http.url", PR_OPT_STR, AT(sink.http.url), .flags = PR_OPT_NO_RELOAD,
		.example = "http://127.0.0.1:8088/events",
		.doc = "Of sink: where batches are posted to, a JSON object a line "
		       "(application/x-ndjson). Idempotency-Key is made of group, topic, partition and "
		       "offsets: the same for the same records, whoever sends them. Redirects are not "
		       "followed." },
	{ "handler.http.compression", PR_OPT_ENUM, AT(sink.http.compression), "none",
		.choices = "none|gzip|zstd", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: Content-Encoding of the batches." },
	{ "handler.http.level", PR_OPT_INT, AT(sink.http.level), "1", .min = 1, .max = 19,
		.flags = PR_OPT_NO_RELOAD, .doc = "Of sink: how hard they are compressed; gzip has 1 to 9." },
	{ "handler.http.max_records", PR_OPT_INT, AT(sink.http.cut.max_records), "500", .min = 1,
		.max = 100000, .flags = PR_OPT_NO_RELOAD, .doc = "Of sink: most records of a batch." },
	{ "handler.http.max_bytes", PR_OPT_SIZE, AT(sink.http.cut.max_bytes), "1MB", .min = KB,
		.max = 256 * MB, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: a batch goes once it is so large, before compression." },
	{ "handler.http.max_age", PR_OPT_DURATION, AT(sink.http.cut.max_age_us), "1s", .min = PR_MS,
		.max = 3600 * PR_SEC, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: or so long after its first record came in." },
	{ "handler.http.keep", PR_OPT_DURATION, AT(sink.http.cut.keep_us), "1d", .min = PR_SEC,
		.max = 3650 * DAY, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: how long the database knows which batches there were, so that records that "
		       "come by "
		       "again go under the same keys; as long as the API remembers those, say. After that it "
		       "knows up to "
		       "where all is sent, and records that come by again stop the partition until somebody "
		       "says what is to be done." },
	{ "handler.http.timeout", PR_OPT_DURATION, AT(sink.http.timeout_us), "10s", .min = 10 * PR_MS,
		.max = 600 * PR_SEC, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: deadline of one request; past it the batch is sent again, under the same "
		       "key." },
	{ "handler.http.secret", PR_OPT_SECRET, AT(sink.http.secret), .flags = PR_OPT_NO_RELOAD,
		.example = "env:WEBHOOK_SECRET",
		.doc = "Of sink: key \"whsec_...\" that signs each request, as handler.secret." },
	{ "handler.http.headers", PR_OPT_STRS, AT(sink.http.headers), .flags = PR_OPT_NO_RELOAD,
		.example = "X-Team: data",
		.doc = "Of sink: further headers, \"Name: value\" each. Secret ones may be \"Authorization: "
		       "env:NAME\" or \"Authorization: file:/path\"." },
	{ "handler.s3.endpoint", PR_OPT_STR, AT(sink.s3.endpoint), .flags = PR_OPT_NO_RELOAD,
		.example = "https://s3.eu-central-1.amazonaws.com", .doc = "Of sink: the object store." },
	{ "handler.s3.bucket", PR_OPT_STR, AT(sink.s3.bucket), .flags = PR_OPT_NO_RELOAD, .example = "events",
		.doc = "Of sink: objects are put into it, named as the files of handler.files." },
	{ "handler.s3.prefix", PR_OPT_STR, AT(sink.s3.prefix), .flags = PR_OPT_NO_RELOAD, .example = "raw/",
		.doc = "Of sink: what their names begin with. One group's, as handler.files.directory is." },
	{ "handler.s3.region", PR_OPT_STR, AT(sink.s3.region), "us-east-1", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: the region that requests are signed for." },
	{ "handler.s3.access_key", PR_OPT_SECRET, AT(sink.s3.access_key), .flags = PR_OPT_NO_RELOAD,
		.example = "env:S3_ACCESS_KEY",
		.doc = "Of sink: whose requests they are. When not set: the variable AWS_ACCESS_KEY_ID." },
	{ "handler.s3.secret_key", PR_OPT_SECRET, AT(sink.s3.secret_key), .flags = PR_OPT_NO_RELOAD,
		.example = "env:S3_SECRET_KEY",
		.doc = "Of sink: what signs them. When not set: the variable AWS_SECRET_ACCESS_KEY." },
	{ "handler.s3.path_style", PR_OPT_BOOL, AT(sink.s3.path_style), "true", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: whether the bucket stands in the path, or before the host's name." },
	{ "handler.s3.part_bytes", PR_OPT_SIZE, AT(sink.s3.part_bytes), "5MB", .min = 5 * MB, .max = 512 * MB,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: size of the parts that an object is uploaded in." },
	{ "handler.s3.timeout", PR_OPT_DURATION, AT(sink.s3.timeout_us), "30s", .min = 100 * PR_MS,
		.max = 3600 * PR_SEC, .flags = PR_OPT_NO_RELOAD, .doc = "Of sink: deadline of one request." },
	{ "handler.s3.format", PR_OPT_ENUM, AT(sink.s3.format.format), "ndjson",
		.choices = "ndjson|avro|parquet", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: what is in the objects." },
	{ "handler.s3.compression", PR_OPT_ENUM, AT(sink.s3.format.compression), "none",
		.choices = "none|gzip|zstd", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: as handler.files.compression." },
	{ "handler.s3.level", PR_OPT_INT, AT(sink.s3.format.level), "1", .min = 1, .max = 19,
		.flags = PR_OPT_NO_RELOAD, .doc = "Of sink: as handler.files.level." },
	{ "handler.s3.row_group", PR_OPT_INT, AT(sink.s3.format.row_group), "10000", .min = 1, .max = 1000000,
		.flags = PR_OPT_NO_RELOAD, .doc = "Of sink: as handler.files.row_group." },
	{ "handler.s3.parquet_library", PR_OPT_STR, AT(sink.s3.format.parquet_library),
		.flags = PR_OPT_NO_RELOAD, .example = "/usr/lib/postrider/libduckdb.so",
		.doc = "Of sink: as handler.files.parquet_library." },
	{ "handler.s3.max_records", PR_OPT_INT, AT(sink.s3.cut.max_records), "100000", .min = 1,
		.max = 100000000, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: a partition's objects are there once they hold so many records." },
	{ "handler.s3.max_bytes", PR_OPT_SIZE, AT(sink.s3.cut.max_bytes), "64MB", .min = KB,
		.max = 1024 * 1024 * MB, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: or once they are so large, before compression." },
	{ "handler.s3.max_age", PR_OPT_DURATION, AT(sink.s3.cut.max_age_us), "60s", .min = 10 * PR_MS,
		.max = 7 * DAY, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: or so long after the first record came in." },
	{ "handler.s3.keep", PR_OPT_DURATION, AT(sink.s3.cut.keep_us), "90d", .min = PR_SEC,
		.max = 3650 * DAY, .flags = PR_OPT_NO_RELOAD, .doc = "Of sink: as handler.files.keep." },
	{ "handler.s3.late", PR_OPT_ENUM, AT(sink.s3.late.policy), "keep", .choices = "keep|side|reject",
		.flags = PR_OPT_NO_RELOAD, .doc = "Of sink: as handler.files.late." },
	{ "handler.s3.late_after", PR_OPT_DURATION, AT(sink.s3.late.after_us), "0s", .max = 365 * DAY,
		.flags = PR_OPT_NO_RELOAD, .doc = "Of sink: as handler.files.late_after." },
	{ "handler.s3.manifest", PR_OPT_BOOL, AT(sink.s3.manifest), "true", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: as handler.files.manifest." },
	{ "handler.table.table", PR_OPT_STR, AT(sink.table.table), .flags = PR_OPT_NO_RELOAD,
		.example = "platform.event",
		.doc = "Of sink: the table that records become rows of, schema.name." },
	{ "handler.table.conninfo", PR_OPT_CONNINFO, AT(sink.table.conninfo), .flags = PR_OPT_NO_RELOAD,
		.example = "host=127.0.0.1 dbname=platform user=sink",
		.doc = "Of sink: its database; how far it is stands there too, so that rows and position are "
		       "one transaction. When not set: the consumer's." },
	{ "handler.table.mode", PR_OPT_ENUM, AT(sink.table.mode), "append", .choices = "append|upsert|scd2",
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: append has a row for each record; upsert the last one of each key, and a "
		       "tombstone deletes it; scd2 the history of each key, with valid_from, valid_to and "
		       "current. upsert (unless handler.table.tombstones is keep) and scd2 promise this of "
		       "topics whose number of partitions does not change: a key that is in two of them can "
		       "come "
		       "to life by an older record, when its tombstone was read before that. A partition "
		       "that is "
		       "added is told of." },
	{ "handler.table.tombstones", PR_OPT_ENUM, AT(sink.table.tombstones), "delete",
		.choices = "delete|keep", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: what a tombstone leaves in a table of mode upsert: delete nothing; keep a "
		       "row "
		       "with payload null and deleted_at, its time, which no older record of whatever "
		       "partition "
		       "overwrites. Readers ask for deleted_at IS NULL then." },
	{ "handler.table.key", PR_OPT_STRS, AT(sink.table.key), .flags = PR_OPT_NO_RELOAD, .example = "key",
		.doc = "Of sink: columns that tell which row a record is about, of upsert and scd2; the "
		       "record's topic and key when not set." },
	{ "handler.table.create", PR_OPT_BOOL, AT(sink.table.create), "true", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: whether a table that is not there is made." },
	{ "handler.table.max_records", PR_OPT_INT, AT(sink.table.cut.max_records), "10000", .min = 1,
		.max = 1000000, .flags = PR_OPT_NO_RELOAD, .doc = "Of sink: most rows of a transaction." },
	{ "handler.table.max_bytes", PR_OPT_SIZE, AT(sink.table.cut.max_bytes), "8MB", .min = KB,
		.max = 256 * MB, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: it is committed once its rows are so large." },
	{ "handler.table.max_age", PR_OPT_DURATION, AT(sink.table.cut.max_age_us), "200ms", .min = PR_MS,
		.max = 3600 * PR_SEC, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: or so long after the first record came in." },
	{ "handler.table.keep", PR_OPT_DURATION, AT(sink.table.cut.keep_us), "1h", .min = PR_SEC,
		.max = 3650 * DAY, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of sink: how long the database knows which batches of rows there were. After that it "
		       "knows up "
		       "to where all is there, and records that come by again stop the partition until "
		       "somebody "
		       "says what is to be done." },
#endif
