-- With the time of its latest record, a reader recognizes a position in an earlier topic of the same name; with the epoch, how many there were.
DROP VIEW projected_positions;
CREATE VIEW projected_positions AS
SELECT projection, topic, partition, next, record_time, epoch FROM positions;
