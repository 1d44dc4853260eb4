//! How many partitions a topic has, and where their logs begin and end.

use anyhow::{Context as _, bail};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{Log, PATIENCE};
use crate::kafka::fault::{Denied, Fault};
use crate::kafka::health::ReaderContext;
use crate::kafka::pool::Client;

impl Log {
    pub(super) fn count_partitions(&self, client: &Client) -> anyhow::Result<usize> {
        let metadata = client
            .fetch_metadata(Some(&self.topic), PATIENCE)
            .context("cannot reach Kafka")?;
        // With the metadata comes the topic's id, in librdkafka's log.
        ReaderContext::serve(client);
        let topic = metadata
            .topics()
            .first()
            .with_context(|| format!("Kafka does not know topic {:?}", self.topic))?;
        if let Some(error) = topic.error() {
            let code = RDKafkaErrorCode::from(error);
            if let Fault::Denied(reason) = Fault::of(&KafkaError::MessageConsumption(code)) {
                return Err(Denied(reason).into());
            }
            bail!("cannot read topic {:?}: {code}", self.topic);
        }
        Ok(topic.partitions().len())
    }

    pub(super) fn watermarks(
        &self,
        client: &Client,
        partition: usize,
    ) -> anyhow::Result<(i64, i64)> {
        client
            .fetch_watermarks(&self.topic, partition as i32, PATIENCE)
            .with_context(|| {
                format!(
                    "cannot fetch the watermarks of topic {:?}, partition {partition}",
                    self.topic
                )
            })
    }

    /// The watermarks of all partitions, with two requests to each broker.
    pub(super) fn all_watermarks(
        &self,
        client: &Client,
        partitions: usize,
    ) -> anyhow::Result<Vec<(i64, i64)>> {
        let of =
            |end: Offset| self.offsets(client, (0..partitions).map(|partition| (partition, end)));
        let mut ends = vec![(0, 0); partitions];
        for (partition, found) in of(Offset::Beginning)? {
            let Offset::Offset(low) = found else {
                bail!("Kafka does not tell where topic {:?} begins", self.topic);
            };
            ends[partition].0 = low;
        }
        for (partition, found) in of(Offset::End)? {
            let Offset::Offset(high) = found else {
                bail!("Kafka does not tell where topic {:?} ends", self.topic);
            };
            ends[partition].1 = high;
        }
        Ok(ends)
    }

    /// Asks for the offset of a time (or of the start or the end of the log) in each of these partitions.
    pub(super) fn offsets(
        &self,
        client: &Client,
        times: impl Iterator<Item = (usize, Offset)>,
    ) -> anyhow::Result<Vec<(usize, Offset)>> {
        let mut list = TopicPartitionList::new();
        for (partition, time) in times {
            list.add_partition_offset(&self.topic, partition as i32, time)
                .context("cannot ask for a time")?;
        }
        if list.count() == 0 {
            return Ok(Vec::new());
        }
        let ask = || {
            let found = client.offsets_for_times(list.clone(), PATIENCE)?;
            let elements = found.elements();
            let offsets = elements.iter().map(|element| {
                element.error()?;
                Ok((element.partition() as usize, element.offset()))
            });
            offsets.collect::<Result<Vec<_>, KafkaError>>()
        };
        let found = ask().or_else(|_| -> anyhow::Result<_> {
            // This client may not know partitions that were added since it was used.
            self.count_partitions(client)?;
            Ok(ask()?)
        });
        found.with_context(|| format!("cannot find offsets in topic {:?}", self.topic))
    }
}
