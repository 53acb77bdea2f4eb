// Streams a chat with LangChain4j, and prints "answer: TEXT" or "error: REASON".
// usage: java -cp CLASSPATH LangChain4jChat.java BASE_URL PROMPT

import dev.langchain4j.model.chat.response.ChatResponse;
import dev.langchain4j.model.chat.response.StreamingChatResponseHandler;
import dev.langchain4j.model.openai.OpenAiStreamingChatModel;
import java.util.concurrent.CompletableFuture;

public class LangChain4jChat {
  public static void main(String[] args) throws Exception {
    var model = OpenAiStreamingChatModel.builder().baseUrl(args[0]).apiKey("k").modelName("m").build();
    var result = new CompletableFuture<String>();
    model.chat(args[1], new StreamingChatResponseHandler() {
      public void onPartialResponse(String text) {}

      public void onCompleteResponse(ChatResponse response) {
        result.complete("answer: " + response.aiMessage().text());
      }

      public void onError(Throwable error) {
        result.complete("error: " + error);
      }
    });
    System.out.println(result.get());
    System.exit(0);
  }
}
