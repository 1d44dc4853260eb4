CREATE TABLE food_counts (
    -- In the order in which the foods first came.
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    food TEXT NOT NULL UNIQUE,
    count BIGINT NOT NULL,
    -- The version of the latest commit that changed it.
    changed BIGINT NOT NULL
);

CREATE INDEX food_counts_by_change ON food_counts (changed);

-- One row, which each commit of counts increments.
CREATE TABLE food_counts_version (version BIGINT NOT NULL);
INSERT INTO food_counts_version (version) VALUES (0);

-- What readers may see.
CREATE VIEW aggregated AS
SELECT number, food, count, changed FROM food_counts;
