{{/* The tokens of clients. All take the chart's root context, and are empty without keys. */}}
{{- define "herald.hasTokens" -}}
{{- .Values.tokens.keysSecret | default .Values.tokens.keysUrl }}
{{- end }}

{{- define "herald.tokenOptions" -}}
{{- $hasTokens := include "herald.hasTokens" . }}
{{- with .Values.tokens }}
{{- if $hasTokens }}
- name: JWT_KEYS
  value: {{ ternary "/etc/herald/keys/keys" (include "herald.envValue" .keysUrl) (empty .keysUrl) }}
{{- if .keysCaSecret }}
- name: JWT_KEYS_CA
  value: /etc/herald/keys-ca/ca.crt
{{- end }}
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
{{- $ca := list "/etc/herald/keys-ca" .keysCaSecret }}
{{- $revoked := list "/etc/herald/revoked" .revokedSecret }}
{{- dict "token-keys" $keys "token-keys-ca" $ca "token-revoked" $revoked | toJson }}
{{- end }}
{{- end }}
