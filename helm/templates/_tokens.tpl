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
{{- end }}
{{- end }}
{{- end }}

{{- define "herald.tokenSecrets" -}}
{{- $tokens := .Values.tokens }}
{{- $secrets := dict }}
{{- if $tokens.keysSecret }}
{{- $secrets = dict "keys" $tokens.keysSecret "revoked" $tokens.revokedSecret }}
{{- end }}
{{- toJson $secrets }}
{{- end }}

{{/* Folders, not single files: only those follow a changed Secret. */}}
{{- define "herald.tokenVolumeMounts" -}}
{{- range $folder, $secret := include "herald.tokenSecrets" . | fromJson }}
{{- if $secret }}
- name: token-{{ $folder }}
  mountPath: /etc/herald/{{ $folder }}
  readOnly: true
{{- end }}
{{- end }}
{{- end }}

{{- define "herald.tokenVolumes" -}}
{{- range $folder, $secret := include "herald.tokenSecrets" . | fromJson }}
{{- if $secret }}
- name: token-{{ $folder }}
  secret:
    secretName: {{ $secret | quote }}
    # Whatever the user of the pod is; nobody else is in it.
    defaultMode: 0444
{{- end }}
{{- end }}
{{- end }}
