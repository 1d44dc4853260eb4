{{/* A Service for clients. Takes a dict: "root", "component", "of", whose values it has, and the name, number and target of its port. */}}
{{- define "herald.publicService" -}}
{{- $service := (index .root.Values .of).service -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "herald.serviceName" (dict "root" .root "component" .of) | quote }}
  labels:
    {{- include "herald.labels" . | nindent 4 }}
  {{- with $service.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ $service.type | default "ClusterIP" }}
  {{- with $service.externalTrafficPolicy }}
  externalTrafficPolicy: {{ . }}
  {{- end }}
  {{- with $service.loadBalancerClass }}
  loadBalancerClass: {{ . | quote }}
  {{- end }}
  {{- with $service.loadBalancerSourceRanges }}
  loadBalancerSourceRanges:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  selector:
    {{- include "herald.selector" . | nindent 4 }}
  ports:
    - name: {{ .port }}
      port: {{ .number }}
      targetPort: {{ .target }}
      {{- with $service.nodePort }}
      nodePort: {{ int . }}
      {{- end }}
      appProtocol: {{ include "herald.scheme" .root }}
  # All requests of a polling client must reach the same replica, and each replica counts rate limits for itself.
  sessionAffinity: ClientIP
  sessionAffinityConfig:
    clientIP:
      timeoutSeconds: 10800
{{- end }}
