// What a user of Kafka is allowed, as kafkajs sees it.

import assert from "node:assert/strict";

/** Resolves with true once a consumer, which is subscribed, is a member of its group; rejects with the error with which it stops. */
export function joined(consumer) {
  return reached(consumer, consumer.events.GROUP_JOIN);
}

/** Resolves with true once it has read from Kafka, even if there was no record; rejects with the error with which it stops. */
export function fetched(consumer) {
  return reached(consumer, consumer.events.FETCH);
}

function reached(consumer, event) {
  return new Promise((resolve, reject) => {
    consumer.on(event, () => resolve(true));
    consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error));
    consumer.run({ eachMessage: async () => {} }).catch(reject);
  });
}

/** For `assert.rejects`. */
export function isRefusal(error) {
  const texts = [error, error.cause, ...(error.errors ?? [])].map((one) => `${one?.type} ${one?.message}`).join();
  assert.match(texts, /authoriz/i);
  return true;
}
