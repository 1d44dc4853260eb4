{{/* TLS of the consumer and the gateway themselves. All take the chart's root context. */}}
{{- define "herald.tlsOptions" -}}
{{- if .Values.tls.secret }}
- name: TLS_CERT
  value: /etc/herald/tls/tls.crt
- name: TLS_KEY
  value: /etc/herald/tls/tls.key
{{- end }}
{{- end }}

{{/* The Secret, as in herald.secrets. */}}
{{- define "herald.tlsSecrets" -}}
{{- $keys := .Values.tls.secretKeys | default dict }}
{{- $files := dict "tls.crt" $keys.cert "tls.key" $keys.key }}
{{- dict "tls" (dict "folder" "/etc/herald/tls" "secret" .Values.tls.secret "files" $files) | toJson }}
{{- end }}

{{/* The name of a Service's port, and its protocol. */}}
{{- define "herald.scheme" -}}
{{ ternary "https" "http" (ne .Values.tls.secret "") }}
{{- end }}

{{/* The port of a Service. */}}
{{- define "herald.publicPort" -}}
{{ ternary 443 80 (ne .Values.tls.secret "") }}
{{- end }}
