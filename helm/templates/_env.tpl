{{/* The variables of each service besides the options in the ConfigMap. All take a component. */}}

{{- define "herald.envOf.producer" -}}
# See kafka.topicBy.
- name: CREATE_TOPIC
  value: "false"
{{- end }}

{{- define "herald.envOf.foods" -}}
- name: FEED
  value: foods
# Not the topic of the broadcasts, which is in the ConfigMap.
- name: KAFKA_TOPIC
  value: {{ include "herald.envValue" .root.Values.counts.topic }}
# Not the pauses between broadcasts either.
- name: INTERVAL_MIN
  value: 1s
- name: INTERVAL_MAX
  value: 2s
# See kafka.topicBy.
- name: CREATE_TOPIC
  value: "false"
{{- end }}

{{- define "herald.envOf.gateway" -}}
- name: LISTEN
  value: "[::]:{{ .root.Values.gateway.containers.ports.containerPort }}"
{{- with include "herald.databaseUrl" . }}
{{ . }}
{{- end }}
{{- if not .root.Values.likes.enabled }}
# No endpoints for likes.
- name: LIKES_TOPIC
  value: ""
{{- end }}
{{- with include "herald.tokenOptions" .root | trim }}
{{ . }}
{{- end }}
{{- with include "herald.tlsOptions" .root | trim }}
{{ . }}
{{- end }}
{{- end }}

{{- define "herald.envOf.consumer" -}}
- name: LISTEN
  value: "[::]:{{ .root.Values.consumer.containers.ports.containerPort }}"
{{- if .root.Values.rooms.enabled }}
- name: ROOMS_LISTEN
  value: "[::]:8000"
{{- end }}
{{- with include "herald.tokenOptions" .root | trim }}
{{ . }}
{{- end }}
{{- with include "herald.tlsOptions" .root | trim }}
{{ . }}
{{- end }}
{{- end }}

{{- define "herald.envOf.projector" -}}
{{- with include "herald.databaseUrl" . }}
{{ . }}
{{- end }}
# A Job creates topics with the rights of this release; otherwise the topics of malformed records exist already.
- name: CREATE_DEAD_LETTER_TOPIC
  value: {{ eq .root.Values.kafka.topicBy "job" | quote }}
{{- end }}
