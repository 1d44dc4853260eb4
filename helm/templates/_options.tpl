{{/* The options of the services: one ConfigMap holds them all; each service restarts only for its own. */}}

{{- define "herald.options" -}}
{{ include "herald.kafkaOptions" . }}
{{- with include "herald.projectionOptions" . | trim }}
{{ . }}
{{- end }}
{{- range $option, $value := include "herald.roomsDefaults" . | fromYaml }}
{{- if not (hasKey $.Values.configmap.data $option) }}
{{ $option }}: {{ $value | quote }}
{{- end }}
{{- end }}
{{- with omit .Values.configmap.data "KAFKA_PROPERTIES" }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The options that a service reads, in addition to those that all services read. */}}
{{- define "herald.optionsOf.producer" -}}
KAFKA_TOPIC INTERVAL_MIN INTERVAL_MAX TZ
{{- end }}

{{/* The other producer, which has a topic and pauses of its own. */}}
{{- define "herald.optionsOf.foods" -}}
{{- end }}

{{- define "herald.optionsOf.gateway" -}}
EVENTS_TOPIC DATABASE_SCHEMA LIKES_TOPIC PARTITIONED_LIKES_TOPIC WINDOWS VIDEOS SESSION_KEY PATH_PREFIX ALLOWED_ORIGINS ALLOWED_HOSTS FRAME_ANCESTORS KEEP_ALIVE MAX_CONNECTIONS MAX_CONNECTIONS_PER_ADDRESS MAX_FRAME_BYTES MAX_FRAME_EVENTS MAX_INVALID_FRAMES SESSION_BUFFER_BYTES TOTAL_BUFFER_KBYTES PUBLISH_TIMEOUT PUBLISH_TOPICS MAX_PUBLISH_BYTES MESSAGE_TIMEOUT MAX_WAIT TRUSTED_PROXIES SESSION_CONNECTIONS_PER_SECOND SESSION_FRAMES_PER_SECOND SESSION_BYTES_PER_SECOND SESSION_REQUESTS_PER_SECOND ADDRESS_CONNECTIONS_PER_SECOND ADDRESS_FRAMES_PER_SECOND ADDRESS_BYTES_PER_SECOND ADDRESS_REQUESTS_PER_SECOND DRAIN_DELAY DRAIN_WINDOW
{{- end }}

{{- define "herald.optionsOf.consumer" -}}
KAFKA_TOPIC ROOMS ROOMS_ALLOWED_ORIGINS LIKES_1_MIN_AGGREGATION_TOPIC_NAME LIKES_5_MIN_AGGREGATION_TOPIC_NAME LIKES_10_MIN_AGGREGATION_TOPIC_NAME ONE_MINUTE_AGGREGATIONS_EVENT_NAME FIVE_MINUTE_AGGREGATIONS_EVENT_NAME TEN_MINUTE_AGGREGATIONS_EVENT_NAME CUSTOM_HEADER PATH_PREFIX ALLOWED_ORIGINS ALLOWED_HOSTS FRAME_ANCESTORS TRUSTED_PROXIES KEEP_ALIVE MAX_CONNECTIONS MAX_CONNECTIONS_PER_ADDRESS MAX_MESSAGE_BYTES RING_MESSAGES RING_TIME RING_BYTES LATEST_BYTES REPLAY_READERS DRAIN_DELAY DRAIN_WINDOW
{{- end }}

{{- define "herald.optionsOf.projector" -}}
PROJECTIONS GROUP_PREFIX EVENTS_TOPIC COUNTS_TOPIC LIKES_TOPIC PARTITIONED_LIKES_TOPIC WINDOWS WINDOW_GRACE INTERIM_INTERVAL DATABASE_SCHEMA DATABASE_READER_ROLE SESSION_KEY BATCH_RECORDS BATCH_INTERVAL RETENTION
{{- end }}

{{- define "herald.optionsOf.all" -}}
KAFKA_BOOTSTRAP_SERVERS KAFKA_PROPERTIES KAFKA_PROPERTIES_FILE LOG_FORMAT LOG_LEVEL SHUTDOWN_GRACE
{{- end }}

{{/* Options that the chart sets itself, or whose values it computes with: a variable of extraEnv must not replace them. */}}
{{- define "herald.optionsOfChart" -}}
LISTEN ADMIN_LISTEN ROOMS_LISTEN ALLOWED_ORIGINS PUBLISH_TOPICS FEED CREATE_TOPIC CREATE_DEAD_LETTER_TOPIC DATABASE_URL TLS_CERT TLS_KEY JWT_KEYS JWT_KEYS_CA JWT_AUDIENCE JWT_ISSUER JWT_REVOKED JWT_COOKIE MAX_STREAMS_PER_PRINCIPAL TOPIC_PARTITIONS TOPIC_REPLICATION_FACTOR TOPIC_CONFIG KAFKA_BOOTSTRAP_SERVERS KAFKA_TOPIC KAFKA_PROPERTIES KAFKA_PROPERTIES_FILE EVENTS_TOPIC PROJECTIONS GROUP_PREFIX DATABASE_SCHEMA DATABASE_READER_ROLE COUNTS_TOPIC COUNTS_DATABASE LIKES_TOPIC PARTITIONED_LIKES_TOPIC WINDOWS WINDOW_GRACE INTERIM_INTERVAL ROOMS LIKES_1_MIN_AGGREGATION_TOPIC_NAME LIKES_5_MIN_AGGREGATION_TOPIC_NAME LIKES_10_MIN_AGGREGATION_TOPIC_NAME
{{- end }}

{{/* Changes when an option that the component reads changes. */}}
{{- define "herald.optionsChecksum" -}}
{{- $options := include "herald.options" .root | fromYaml -}}
{{- $read := dict -}}
{{- range splitList " " (printf "%s %s" (include "herald.optionsOf.all" .root) (include (printf "herald.optionsOf.%s" .component) .root)) -}}
{{- if hasKey $options . }}{{ $_ := set $read . (get $options .) }}{{ end -}}
{{- end -}}
{{ toJson $read | sha256sum }}
{{- end }}

{{/* The services' own defaults, for the chart's calculations. */}}
{{- define "herald.optionDefaults" -}}
SHUTDOWN_GRACE: 30s
DRAIN_DELAY: 5s
DRAIN_WINDOW: 10s
INTERVAL_MIN: 1s
INTERVAL_MAX: 10s
MAX_CONNECTIONS: "10000"
RING_BYTES: "67108864"
LATEST_BYTES: "67108864"
TOTAL_BUFFER_KBYTES: "65536"
{{- end }}

{{/* With rooms, the consumer reads seven topics, and these limits are for each: small enough for its default memory limit. */}}
{{- define "herald.roomsDefaults" -}}
{{- if .Values.rooms.enabled -}}
RING_BYTES: "8388608"
LATEST_BYTES: "4194304"
{{- end }}
{{- end }}

{{/* The path below which a proxy publishes the services, without its last slash. */}}
{{- define "herald.pathPrefix" -}}
{{ .Values.configmap.data.PATH_PREFIX | default "" | trimSuffix "/" }}
{{- end }}

{{/* The effective value of an option, whether set in the values or not; takes a dict with "root" and "option". */}}
{{- define "herald.option" -}}
{{- $defaults := merge (include "herald.roomsDefaults" .root | fromYaml) (include "herald.optionDefaults" .root | fromYaml) -}}
{{ get .root.Values.configmap.data .option | default (get $defaults .option) }}
{{- end }}

{{/* The same for a duration, in milliseconds; the schema allows only forms like 500ms, 30s or 2m. */}}
{{- define "herald.milliseconds" -}}
{{- $duration := include "herald.option" . -}}
{{- if hasSuffix "ms" $duration }}{{ trimSuffix "ms" $duration | int64 }}
{{- else if hasSuffix "s" $duration }}{{ trimSuffix "s" $duration | int64 | mul 1000 }}
{{- else }}{{ trimSuffix "m" $duration | int64 | mul 60000 }}
{{- end }}
{{- end }}

{{- define "herald.seconds" -}}
{{ div (add (include "herald.milliseconds" . | int64) 999) 1000 }}
{{- end }}

{{/* The maximum memory of a connection to a consumer or a gateway, in KiB: 20, a full send buffer in the kernel, and 40 for TLS. */}}
{{- define "herald.kibPerConnection" -}}
{{ ternary 124 84 (ne .Values.tls.secret "") }}
{{- end }}

{{/* An amount of memory in bytes; the schema allows only forms like 512Ki, 256Mi or 1Gi. */}}
{{- define "herald.bytes" -}}
{{- $unit := get (dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824) (regexFind "..$" .) -}}
{{ mul (regexFind "^[0-9]+" . | int64) $unit }}
{{- end }}

{{/* How long Kubernetes waits for a pod to exit: always longer than the service's own limit. */}}
{{- define "herald.terminationGracePeriodSeconds" -}}
{{ add (include "herald.seconds" (dict "root" . "option" "SHUTDOWN_GRACE") | int64) 5 }}
{{- end }}
