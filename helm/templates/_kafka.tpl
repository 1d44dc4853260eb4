{{/* The connection of a pod to Kafka. */}}

{{/* The namespaces of Kafka's pods, separated by spaces: from the values, or from the Services' names. */}}
{{- define "herald.kafkaNamespaces" -}}
{{- $named := list -}}
{{- range splitList "," .Values.kafka.bootstrapServers -}}
{{- with include "herald.namespaceOfService" . }}{{ $named = append $named . }}{{ end -}}
{{- end -}}
{{- .Values.kafka.namespace | default (uniq $named | join " ") -}}
{{- end }}

{{/* The namespace in NAME.NAMESPACE.svc:PORT, with or without the cluster's domain; empty for any other address. */}}
{{- define "herald.namespaceOfService" -}}
{{- regexFind "\\.[a-z0-9-]+\\.svc[.:]" (lower .) | trimPrefix "." | trimSuffix ":" | trimSuffix "." | trimSuffix ".svc" -}}
{{- end }}

{{/* The non-secret properties of librdkafka: TLS from the values, then the user's own; the last one wins. */}}
{{- define "herald.kafkaProperties" -}}
{{- with .Values.kafka -}}
{{- if .caSecret }}
security.protocol=ssl
ssl.ca.location=/etc/kafka/ca/ca.crt
{{- end }}
{{- if .userSecret }}
ssl.certificate.location=/etc/kafka/user/user.crt
ssl.key.location=/etc/kafka/user/user.key
{{- end }}
{{- end }}
{{ .Values.configmap.data.KAFKA_PROPERTIES | default "" }}
{{- end }}

{{/* The options that every service reads, as lines of a ConfigMap's data. */}}
{{- define "herald.kafkaOptions" -}}
KAFKA_BOOTSTRAP_SERVERS: {{ .Values.kafka.bootstrapServers | quote }}
KAFKA_TOPIC: {{ .Values.kafka.topicName | quote }}
{{- with include "herald.kafkaProperties" . | trim }}
KAFKA_PROPERTIES: {{ . | quote }}
{{- end }}
{{- if .Values.kafka.propertiesSecret }}
KAFKA_PROPERTIES_FILE: /etc/kafka/properties/properties
{{- end }}
{{- end }}

{{/* The topics that the chart creates, as JSON, each once. "job" names the Job, "from" the value with the topic's name. */}}
{{- define "herald.topics" -}}
{{- with .Values -}}
{{- $topics := list (dict "job" "topic" "from" "kafka.topicName" "name" .kafka.topicName "partitions" .kafka.partitions "config" .kafka.topicConfig) -}}
{{- if include "herald.hasEvents" $ -}}
{{- $topics = append $topics (dict "job" "events-topic" "from" "sessions.eventsTopic" "name" .sessions.eventsTopic "partitions" .sessions.partitions "config" .sessions.topicConfig) -}}
{{- end -}}
{{- if .counts.enabled -}}
{{- $topics = append $topics (dict "job" "counts-topic" "from" "counts.topic" "name" .counts.topic "partitions" .counts.partitions "config" .counts.topicConfig) -}}
{{- end -}}
{{- $results := list -}}
{{- if .likes.enabled -}}
{{- range $key := list "topic" "partitionedTopic" -}}
{{- $topics = append $topics (dict "job" "likes-topics" "from" (printf "likes.%s" $key) "name" (get $.Values.likes $key) "partitions" $.Values.likes.partitions "config" $.Values.likes.topicConfig) -}}
{{- end -}}
{{- range include "herald.windowTopics" $ | fromJson -}}
{{- $results = append $results . -}}
{{- $topics = append $topics (dict "job" "results" "from" "likes.windows" "name" . "partitions" 1 "config" $.Values.likes.resultsConfig) -}}
{{- $topics = append $topics (dict "job" "results" "from" "likes.windows" "name" (printf "%s.live" .) "partitions" 1 "config" $.Values.likes.interimConfig) -}}
{{- end -}}
{{- end -}}
{{- if .rooms.enabled -}}
{{- range $key, $topic := include "herald.roomTopics" $ | fromJson -}}
{{- if not (has $topic $results) -}}
{{- $topics = append $topics (dict "job" "results" "from" (printf "rooms.topics.%s" $key) "name" $topic "partitions" 1 "config" $.Values.likes.resultsConfig) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{ toJson $topics }}
{{- end }}
{{- end }}

{{/* The topics of malformed records, as JSON, of the same form. */}}
{{- define "herald.deadLetterTopics" -}}
{{- $topics := list -}}
{{- if .Values.projector.enabled -}}
{{- range include "herald.topics" . | fromJsonArray -}}
{{- if or (and (eq .from "sessions.eventsTopic") $.Values.sessions.enabled) (has .from (list "counts.topic" "likes.topic")) -}}
{{- $topics = append $topics (dict "from" .from "name" (printf "%s.dlq" .name) "partitions" 1 "config" dict) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{ toJson $topics }}
{{- end }}

{{/* The topic's configuration for the Job: one key=value per line. */}}
{{- define "herald.topicConfig" -}}
{{- $lines := list }}
{{- range $key, $value := . }}
{{- $lines = append $lines (printf "%s=%s" $key $value) }}
{{- end }}
{{- join "\n" $lines }}
{{- end }}

{{/* The Secrets, as in herald.secrets; the services read them only at start. */}}
{{- define "herald.kafkaSecrets" -}}
{{- $user := ternary "producer" .component (eq .component "foods") }}
{{- with .root.Values.kafka -}}
{{- $keys := .secretKeys | default dict }}
{{- $properties := $keys.properties | default "properties" }}
{{- /* A pod that is taken over has the login of its own service, and no other. */}}
{{- if .propertiesPerService }}{{ $properties = printf "%s-%s" $user $properties }}{{ end }}
{{- dict
  "ca" (dict "folder" "/etc/kafka/ca" "secret" .caSecret "files" (dict "ca.crt" $keys.ca))
  "user" (dict "folder" "/etc/kafka/user" "secret" .userSecret "files" (dict "user.crt" $keys.cert "user.key" $keys.key))
  "properties" (dict "folder" "/etc/kafka/properties" "secret" .propertiesSecret "files" (dict "properties" $properties))
  | toJson }}
{{- end }}
{{- end }}
