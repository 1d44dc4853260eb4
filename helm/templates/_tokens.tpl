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
  value: {{ .maxStreamsPerPrincipal | int64 | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The Secrets, as in herald.secrets. */}}
{{- define "herald.tokenSecrets" -}}
{{- with .Values.tokens -}}
{{- $keys := .secretKeys | default dict }}
{{- dict
  "token-keys" (dict "folder" "/etc/herald/keys" "secret" .keysSecret "files" (dict "keys" $keys.keys))
  "token-keys-ca" (dict "folder" "/etc/herald/keys-ca" "secret" .keysCaSecret "files" (dict "ca.crt" $keys.ca))
  "token-revoked" (dict "folder" "/etc/herald/revoked" "secret" .revokedSecret "files" (dict "revoked" $keys.revoked))
  | toJson }}
{{- end }}
{{- end }}

{{/* What `helm test` needs: a token, and the certificate of the consumer, without its key. */}}
{{- define "herald.testSecrets" -}}
{{- $token := dict "token" (.Values.tokens.secretKeys).token }}
{{- $certificate := dict "tls.crt" (.Values.tls.secretKeys).cert }}
{{- dict
  "token" (dict "folder" "/etc/herald/token" "secret" .Values.tokens.testSecret "files" $token)
  "tls" (dict "folder" "/etc/herald/tls" "secret" .Values.tls.secret "files" $certificate)
  | toJson }}
{{- end }}

{{/* Not empty if `helm test` can read a message. */}}
{{- define "herald.hasTest" -}}
{{- if or .Values.tokens.testSecret (not (include "herald.hasTokens" .)) }}true{{ end -}}
{{- end }}
