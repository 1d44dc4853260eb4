{{/* What all pods of this chart have in common. */}}

{{/* Pod Security "restricted", and no token: no pod uses the API server. */}}
{{- define "herald.pod" -}}
automountServiceAccountToken: false
# A Service named kafka would set KAFKA_PORT, and so on for any name.
enableServiceLinks: false
securityContext:
  # Without ids: the images have a numeric user, and OpenShift gives each namespace a range of its own.
  runAsNonRoot: true
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "herald.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* A text as an environment variable's value, escaped: Kubernetes expands $(NAME), and turns "$$" into "$". */}}
{{- define "herald.envValue" -}}
{{ . | replace "$" "$$" | quote }}
{{- end }}

{{/* Has the service started, does it hang, should it get traffic now? */}}
{{- define "herald.probes" -}}
startupProbe:
  httpGet:
    path: /livez
    port: admin
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /livez
    port: admin
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /readyz
    port: admin
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end }}
