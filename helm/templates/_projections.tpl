{{/* What the services are to do: session events, food counts, likes in windows, rooms; and what they need for it. */}}

{{/* What the projector computes, separated by commas. */}}
{{- define "herald.projections" -}}
{{- $names := list -}}
{{- if .Values.sessions.enabled }}{{ $names = append $names "sessions" }}{{ end -}}
{{- if .Values.counts.enabled }}{{ $names = append $names "counts" }}{{ end -}}
{{- if .Values.likes.enabled }}{{ $names = append $names "windows" }}{{ end -}}
{{- join "," $names -}}
{{- end }}

{{/* Not empty if there are session events: the gateway always accepts them. */}}
{{- define "herald.hasEvents" -}}
{{- if or .Values.gateway.enabled (and .Values.projector.enabled .Values.sessions.enabled) }}true{{ end -}}
{{- end }}

{{/* Not empty if gateway and projector need the database; windows alone are kept in Kafka. */}}
{{- define "herald.hasDatabase" -}}
{{- if and (or .Values.gateway.enabled .Values.projector.enabled) (or .Values.sessions.enabled .Values.counts.enabled) }}true{{ end -}}
{{- end }}

{{/* The topics of the results, as JSON: each window of likes.windows with its topic. */}}
{{- define "herald.windowTopics" -}}
{{- $topics := dict -}}
{{- range splitList "," .Values.likes.windows -}}
{{- $pair := splitList "=" . -}}
{{- $_ := set $topics (first $pair | trim) (last $pair | trim) -}}
{{- end -}}
{{ toJson $topics }}
{{- end }}

{{/* The topics of the rooms, as JSON, by their keys in rooms.topics: the one of the values, or that of the window of this length. */}}
{{- define "herald.roomTopics" -}}
{{- $windows := include "herald.windowTopics" . | fromJson -}}
{{- $topics := dict -}}
{{- range $key, $lengths := dict "one" (list "1m" "60s") "five" (list "5m" "300s") "ten" (list "10m" "600s") -}}
{{- $topic := get $.Values.rooms.topics $key -}}
{{- range $lengths }}{{ $topic = $topic | default (get $windows .) }}{{ end -}}
{{- $_ := set $topics $key $topic -}}
{{- end -}}
{{ toJson $topics }}
{{- end }}

{{/* The options, as lines of a ConfigMap's data; none if nothing is enabled. */}}
{{- define "herald.projectionOptions" -}}
{{- if include "herald.hasEvents" . }}
EVENTS_TOPIC: {{ .Values.sessions.eventsTopic | quote }}
{{- end }}
{{- if .Values.projector.enabled }}
PROJECTIONS: {{ include "herald.projections" . | quote }}
GROUP_PREFIX: {{ .Values.projector.groupPrefix | quote }}
{{- end }}
{{- if include "herald.hasDatabase" . }}
DATABASE_SCHEMA: {{ .Values.database.schema | quote }}
{{- with .Values.database.readerRole }}
DATABASE_READER_ROLE: {{ . | quote }}
{{- end }}
{{- end }}
{{- if .Values.counts.enabled }}
COUNTS_TOPIC: {{ .Values.counts.topic | quote }}
{{- end }}
{{- if .Values.likes.enabled }}
LIKES_TOPIC: {{ .Values.likes.topic | quote }}
PARTITIONED_LIKES_TOPIC: {{ .Values.likes.partitionedTopic | quote }}
WINDOWS: {{ .Values.likes.windows | quote }}
WINDOW_GRACE: {{ .Values.likes.grace | quote }}
INTERIM_INTERVAL: {{ .Values.likes.interimInterval | quote }}
{{- end }}
{{- if .Values.rooms.enabled }}
{{- $topics := include "herald.roomTopics" . | fromJson }}
ROOMS: "true"
LIKES_1_MIN_AGGREGATION_TOPIC_NAME: {{ $topics.one | quote }}
LIKES_5_MIN_AGGREGATION_TOPIC_NAME: {{ $topics.five | quote }}
LIKES_10_MIN_AGGREGATION_TOPIC_NAME: {{ $topics.ten | quote }}
{{- end }}
{{- end }}

{{/* The variable with the database's address, if it is needed. It contains a password, so it is never in the ConfigMap. */}}
{{- define "herald.databaseUrl" -}}
{{- if include "herald.hasDatabase" .root -}}
- name: DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .root.Values.database.secret | quote }}
      key: {{ get (.root.Values.database.secretKeys | default dict) (printf "%sUrl" .component) | default (printf "%s-url" .component) | quote }}
{{- end }}
{{- end }}

{{/* The Secret of its CA, as in herald.secrets. */}}
{{- define "herald.databaseSecrets" -}}
{{- $ca := ternary .Values.database.caSecret "" (include "herald.hasDatabase" . | not | not) }}
{{- $files := dict "ca.crt" (.Values.database.secretKeys).ca }}
{{- dict "database-ca" (dict "folder" "/etc/herald/database-ca" "secret" $ca "files" $files) | toJson }}
{{- end }}
