"""A straightforward consumer of foods, with kafka-python and sqlite3: load/main.rs compares Herald with it.

Arguments: Kafka's address, the topic, the file, and how many records a transaction has at most.
"""

import json
import sqlite3
import sys

from kafka import KafkaConsumer

ADDRESS, TOPIC, FILE, BATCH = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
ADD = "INSERT INTO aggregated VALUES (?, 1) ON CONFLICT (food) DO UPDATE SET count = count + 1"

database = sqlite3.connect(FILE)
database.execute('CREATE TABLE IF NOT EXISTS "aggregated" ("food" TEXT, "count" INTEGER, PRIMARY KEY("food"))')
database.commit()
print(json.dumps({"public": "127.0.0.1:0"}), flush=True)

consumer = KafkaConsumer(
    TOPIC,
    bootstrap_servers=ADDRESS,
    group_id=f"{TOPIC}-peer-{BATCH}",
    auto_offset_reset="earliest",
    enable_auto_commit=False,
    value_deserializer=json.loads,
)
while True:
    for records in consumer.poll(timeout_ms=200, max_records=BATCH).values():
        for record in records:
            database.execute(ADD, (record.value["food"],))
        database.commit()
        consumer.commit()
