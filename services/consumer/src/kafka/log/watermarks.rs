//! The number of a topic's partitions, and the offsets at which their logs begin and end.

use anyhow::{Context as _, bail};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{Log, TIMEOUT};
use crate::kafka::fault::{Denied, Fault};
use crate::kafka::health::ReaderContext;
use crate::kafka::pool::Client;

impl Log {
    pub(super) fn count_partitions(&self, client: &Client) -> anyhow::Result<usize> {
        let metadata = client
            .fetch_metadata(Some(&self.topic), TIMEOUT)
            .context("cannot reach Kafka")?;
        // The topic's id arrives with the metadata, in librdkafka's log.
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
            .fetch_watermarks(&self.topic, partition as i32, TIMEOUT)
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
                bail!("Kafka returned no start offset of topic {:?}", self.topic);
            };
            ends[partition].0 = low;
        }
        for (partition, found) in of(Offset::End)? {
            let Offset::Offset(high) = found else {
                bail!("Kafka returned no end offset of topic {:?}", self.topic);
            };
            ends[partition].1 = high;
        }
        Ok(ends)
    }

    /// Looks up the offset of a time (or of the start or the end of the log) in each of these partitions.
    pub(super) fn offsets(
        &self,
        client: &Client,
        times: impl Iterator<Item = (usize, Offset)>,
    ) -> anyhow::Result<Vec<(usize, Offset)>> {
        let mut list = TopicPartitionList::new();
        for (partition, time) in times {
            list.add_partition_offset(&self.topic, partition as i32, time)
                .context("cannot look up a time")?;
        }
        if list.count() == 0 {
            return Ok(Vec::new());
        }
        let request = || {
            let found = client.offsets_for_times(list.clone(), TIMEOUT)?;
            let elements = found.elements();
            let offsets = elements.iter().map(|element| {
                element.error()?;
                Ok((element.partition() as usize, element.offset()))
            });
            offsets.collect::<Result<Vec<_>, KafkaError>>()
        };
        let found = request().or_else(|_| -> anyhow::Result<_> {
            // This client may not know partitions that were added since it was last used.
            self.count_partitions(client)?;
            Ok(request()?)
        });
        found.with_context(|| format!("cannot find offsets in topic {:?}", self.topic))
    }
}
