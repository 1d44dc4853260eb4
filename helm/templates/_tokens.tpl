{{/* The tokens of clients. All take the chart's root context, and are empty without keys. */}}
{{- define "herald.tokenOptions" -}}
{{- with .Values.tokens }}
{{- if .keysSecret }}
- name: JWT_KEYS
  value: /etc/herald/keys/keys
- name: JWT_AUDIENCE
  value: {{ include "herald.envValue" .audience }}
{{- if .issuer }}
- name: JWT_ISSUER
  value: {{ include "herald.envValue" .issuer }}
{{- end }}
{{- if .revokedSecret }}
- name: JWT_REVOKED
  value: /etc/herald/revoked/revoked
{{- end }}
{{- if .cookie }}
- name: JWT_COOKIE
  value: {{ .cookie }}
{{- end }}
{{- if .maxStreamsPerPrincipal }}
- name: MAX_STREAMS_PER_PRINCIPAL
  value: {{ .maxStreamsPerPrincipal | toString | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The Secrets, by the name of their volume, with the folder that each is mounted at. */}}
{{- define "herald.tokenSecrets" -}}
{{- with .Values.tokens -}}
{{- $keys := list "/etc/herald/keys" .keysSecret }}
{{- $revoked := list "/etc/herald/revoked" .revokedSecret }}
{{- dict "token-keys" $keys "token-revoked" $revoked | toJson }}
{{- end }}
{{- end }}
