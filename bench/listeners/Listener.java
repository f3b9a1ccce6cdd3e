// bench/listeners/Listener.java -- what services write today, in plain kafka-clients and JDBC, without the cost
// of a framework around it. Two threads, each a member of the group with a connection of its own.
//   record  per record: dedupe row, update when it was new, database commit, offset commit
//   batch   per poll: all dedupe rows, all updates, one database commit, one offset commit. The dedupe row of a
//           record that came before is skipped, its update is not: a JDBC batch does not say which rows were
//           inserted (reWriteBatchedInserts answers SUCCESS_NO_INFO). Many are written so.
// Refuses to go on after any error. Ends when it is killed.
//
//   java -cp ... Listener record|batch BROKERS GROUP TOPIC JDBC_URL

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.StringDeserializer;

public class Listener {
    static final int THREADS = 2, POLL = 2000;
    static final String SEEN = "INSERT INTO bench.processed VALUES (?) ON CONFLICT DO NOTHING";
    static final String EFFECT = "UPDATE bench.account SET n = n + 1,"
        + " amount = amount + (?::jsonb ->> 'amount')::bigint WHERE key = ?";

    static UUID id(ConsumerRecord<String, String> r) {
        return UUID.fromString(new String(r.headers().lastHeader("id").value()));
    }

    static void effect(PreparedStatement s, ConsumerRecord<String, String> r) throws Exception {
        s.setString(1, r.value());
        s.setString(2, r.key());
    }

    static void record(KafkaConsumer<String, String> c, Connection pg, PreparedStatement seen, PreparedStatement effect,
                       ConsumerRecord<String, String> r) throws Exception {
        seen.setObject(1, id(r));
        if (seen.executeUpdate() == 1) {
            effect(effect, r);
            effect.executeUpdate();
        }
        pg.commit();
        c.commitSync(Map.of(new TopicPartition(r.topic(), r.partition()), new OffsetAndMetadata(r.offset() + 1)));
    }

    static void batch(KafkaConsumer<String, String> c, Connection pg, PreparedStatement seen, PreparedStatement effect,
                      ConsumerRecords<String, String> records) throws Exception {
        for (ConsumerRecord<String, String> r : records) {
            seen.setObject(1, id(r));
            seen.addBatch();
            effect(effect, r);
            effect.addBatch();
        }
        seen.executeBatch();
        effect.executeBatch();
        pg.commit();
        c.commitSync();
    }

    static void listen(String[] args) throws Exception {
        boolean batches = args[0].equals("batch");
        Map<String, Object> config = Map.of("bootstrap.servers", args[1], "group.id", args[2], "enable.auto.commit",
            "false", "auto.offset.reset", "earliest", "max.poll.records", batches ? POLL : 500,
            "isolation.level", "read_committed", "partition.assignment.strategy",
            "org.apache.kafka.clients.consumer.RangeAssignor");
        try (KafkaConsumer<String, String> c =
                 new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer());
             Connection pg = DriverManager.getConnection(args[4])) {
            pg.setAutoCommit(false);
            PreparedStatement seen = pg.prepareStatement(SEEN), effect = pg.prepareStatement(EFFECT);
            c.subscribe(List.of(args[3]));
            while (true) {
                ConsumerRecords<String, String> records = c.poll(Duration.ofMillis(200));
                if (batches && !records.isEmpty())
                    batch(c, pg, seen, effect, records);
                else
                    for (ConsumerRecord<String, String> r : records)
                        record(c, pg, seen, effect, r);
            }
        }
    }

    public static void main(String[] args) {
        for (int i = 0; i < THREADS; i++)
            new Thread(() -> {
                try {
                    listen(args);
                } catch (Throwable e) {
                    e.printStackTrace();
                    Runtime.getRuntime().halt(1);
                }
            }).start();
    }
}
