package ai.onnxruntime;

/** Types of tensors, as many as clients name. */
public enum OnnxJavaType {
  FLOAT,
  INT32,
  UINT8
}
