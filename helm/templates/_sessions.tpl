{{/* What gateway and projector have in common: the topic of session events, and the database. */}}

{{/* Their options, as lines of a ConfigMap's data; none if neither is enabled. */}}
{{- define "herald.sessionsOptions" -}}
{{- if include "herald.hasSessions" . -}}
EVENTS_TOPIC: {{ .Values.sessions.eventsTopic | quote }}
KAFKA_GROUP: {{ .Values.sessions.group | quote }}
DATABASE_SCHEMA: {{ .Values.database.schema | quote }}
{{- with .Values.database.readerRole }}
DATABASE_READER_ROLE: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* The variable with the database's address. It contains a password, so it is never in the ConfigMap. */}}
{{- define "herald.databaseUrl" -}}
- name: DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .root.Values.database.secret | quote }}
      key: {{ .component }}-url
{{- end }}
